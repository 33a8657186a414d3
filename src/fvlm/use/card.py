"""The model card of an exported run, its README.md: what it was trained on, how well, its limits, how to load it."""

import csv
from pathlib import Path

from fvlm.analysis.finished import base_name
from fvlm.config.resolve import study_from_files
from fvlm.config.schema import Run, Source
from fvlm.config.trained import ADOPTED
from fvlm.costs.flops import parameters
from fvlm.errors import UserError
from fvlm.use.options import QUESTION

LICENCES = {"facebook/dinov2": "Apache-2.0", "HuggingFaceTB/SmolLM2": "Apache-2.0"}  # of pretrained weights, by name
LOADING = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
chat = [{"role": "user", "content": [{"type": "video", "path": "my.mp4"}, {"type": "text", "text": QUESTION}]}]
inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
answer = model.generate(**inputs.to(model.device))[0, inputs["input_ids"].shape[1] :]
print(processor.decode(answer, skip_special_tokens=True))
```
"""
FRAMES = {"own": "with its frames", "none": "without frames", "other": "with the frames of another video"}
READS = {
    "foveated": "one visual token per frame, read by a query that follows from all frames before it",
    "multi_token": "each frame's patches, averaged over windows",
    "pixel_shuffle": "7 x 7 blocks of each frame's patches",
    "blind": "no frames: it answers from the text alone",
}


def card(folder: Path, run: Run, sources: dict[str, dict], summary: dict) -> str:
    """Return the card in Markdown.

    folder    of the finished run, results/runs/NAME, absolute
    sources   how its sources were shown: source -> {"kind", "crop", "prompt"}; empty for a run of an earlier version
    summary   run_summary.json; empty if there is none
    """
    prompts = (entry["prompt"] for entry in sources.values() if entry["kind"] == "video" and entry["prompt"])
    question = repr(next(prompts, QUESTION))
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags: [video, fvlm]\n---\n",
        f"# {run.name}\n",
        f"A vision-language model that reads {READS[run.model.architecture]}.\n",
        "## Load it\n\n```bash\npip install torch 'transformers>=5.23,<6' 'av>=17' pillow jinja2\n```\n\n"
        + LOADING.replace("QUESTION", question),
        "`pipeline('image-text-to-text', model=folder, trust_remote_code=True)` takes the same chats, one at a time. "
        "Batches are padded left. `modeling_fvlm.py` is the definition of the model, on one screen per part.\n",
        _model(run),
        _training(run, summary),
        _data(folder, run, sources),
        _scores(folder, run, summary),
        _limits(run),
        _licences(folder, run),
    ]
    return "\n".join(parts)


def _table(rows: list[tuple], head: tuple) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ("---",) * len(head), *rows)) + "\n"


def _model(run: Run) -> str:
    model, count = run.model, parameters(run.model)
    parts = {"encoder": (model.encoder, count["dino"]), "language model": (model.language, count["llm"])}
    rows = [
        (name, f"{size.name}, started from {size.weights or 'random weights'}", number)
        for name, (size, number) in parts.items()
    ]
    about = f"{model.architecture}, visual tokens per frame: {model.visual_tokens}"
    rows.append(("connector", about, count["connector"]))
    rows.append(("all", "", count["total"]))
    return "## Model\n\n" + _table([(*row[:2], f"{row[2]:,}") for row in rows], ("part", "", "parameters"))


def _training(run: Run, summary: dict) -> str:
    optim, train = run.optim, run.train
    rates = ", ".join(f"{part} {rate:g}" for part, rate in optim.lr.model_dump().items())
    flops = summary.get("flops")
    rows = [
        ("samples", f"{summary['samples']:,}" if summary.get("samples") else "not recorded"),
        ("steps, samples per step", f"{summary.get('steps') or 'not recorded'}, {optim.batch_size}"),
        ("training FLOPs", f"{flops:.3g} (2 per multiply-add)" if flops else "not recorded"),
        ("learning rates", f"{rates}; {optim.schedule}, {optim.warmup:.0%} warm-up"),
        ("optimizer", f"AdamW, weight decay {optim.weight_decay:g}, gradient clip {optim.clip:g}"),
        ("frozen", ", ".join(optim.freeze) or "nothing"),
        ("loss on", {"all": "all text", "answers": "answers", "preference": "pairs of answers (DPO)"}[run.data.loss]),
        ("starts from", run.parent or "the weights above"),
        ("precision, seed", f"{summary.get('precision', train.precision)}, {train.seed}"),
    ]
    text = "## Training\n\n" + _table(rows, ("", ""))
    if ADOPTED in summary:
        notes = "\n".join(f"- {note}" for note in summary[ADOPTED].get("differences", ()))
        text += f"\nThe run was trained by another program. It differs from the settings above:\n\n{notes}\n"
    return text


def _data(folder: Path, run: Run, sources: dict[str, dict]) -> str:
    known, share = _sources_of_study(folder), run.data.share
    rows = []
    for name in run.data.sources:
        kind = sources.get(name, {}).get("kind", "")
        licence = known[name].licence if name in known else ""
        rows.append((name, kind, f"{share[kind]:.0%}" if kind in share else "", licence or "not recorded"))
    data = run.data
    rules = (
        f"An image is shown for {data.static_frames} frames, a video at 1 frame per second, at most {data.max_frames} "
        f"frames. The question stood before the frames in {data.question_first:.0%} of the samples.\n"
    )
    if run.parent:
        rules += f"\n{run.parent}, which this run starts from, was trained on data of its own.\n"
    head = ("source", "kind", "share of its kind in all samples", "licence")
    return "## Data\n\n" + _table(rows, head) + "\n" + rules


def _sources_of_study(folder: Path) -> dict[str, Source]:
    """Return the sources of the study that a run belongs to; empty if it did not save its configuration."""
    saved = folder.parent.parent / "study.json"
    try:
        return study_from_files([str(saved)]).sources if saved.is_file() else {}
    except UserError:  # of an earlier version
        return {}


def _scores(folder: Path, run: Run, summary: dict) -> str:
    rows = []
    table = folder.parent.parent / "tables/modes.csv"
    if table.is_file():
        with table.open(newline="") as file:
            own = [row for row in csv.DictReader(file) if row["run"] == base_name(run.name)]
        for row in own:
            interval = f"{float(row['low']):.3f} to {float(row['high']):.3f}" if row["low"] and row["high"] else ""
            what = f"{row['mode']}, {FRAMES[row['frames']]}"
            rows.append((what, f"{float(row['loss']):.3f}", interval, row["samples"].removesuffix(".0")))
    best = (summary.get("best") or {}).get("val_loss")
    if best is not None:
        rows.append(("lowest validation loss of the training", f"{best:.3f}", "", ""))
    if not rows:
        return "## Scores\n\nNo held-out loss was recorded.\n"
    head = ("held-out loss, nats per scored token", "loss", "95 % interval", "samples")
    return "## Scores\n\n" + _table(rows, head)


def _limits(run: Run) -> str:
    limits = ["Its answers can be wrong, and nothing filters them."]
    if run.model.variant.sees:
        limits += [
            f"It sees a frame as {run.model.encoder.image} x {run.model.encoder.image} pixels and hears no sound.",
            "It does not see what happens between its frames, which are a second apart, or more in a video over 64 s.",
        ]
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits) + "\n"


def _licences(folder: Path, run: Run) -> str:
    named = {part.weights for part in (run.model.encoder, run.model.language) if part.weights}
    rows = [("code in this folder", "Apache-2.0")]
    for weights in sorted(named):
        rows.append((weights, next((text for start, text in LICENCES.items() if weights.startswith(start)), "its own")))
    rows.append(("training data", "see the table of the data; the weights follow from all of them"))
    return "## Licences\n\n" + _table(rows, ("part", "licence"))
