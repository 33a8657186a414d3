"""A results folder with small shards of every kind, and runs that read it."""

from pathlib import Path

import numpy as np

from fvlm.config.resolve import load_study
from fvlm.config.schema import Run, Study
from fvlm.config.study_file import merged, read_yaml
from fvlm.data.batches.loader import Steps, open_training
from fvlm.data.shards.index import write_index
from fvlm.data.shards.text import train_tokenizer
from fvlm.train.order import drawn_order
from tests.conftest import ROOT
from tests.index_cases import write_tar
from tests.reader_cases import picture

COUNTS = {"grid": 24, "pictures": 24, "chat": 16, "preferences": 12}
HELD_OUT = 12
COLOURS = ("red", "green", "blue", "grey")
TURNS = [
    {"role": "user", "content": "What colour is it?"},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "still red\nü"},
]
FORMS = {
    "messages": {"messages": TURNS},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, *TURNS]},
    "begins": {"messages": TURNS[1:]},
    "answer": {"user": "What colour is it?", "assistant": "a red square"},
    "caption": {"caption": "a red square"},
    "pair": {"user": "What colour is it?", "chosen": "a red square", "rejected": "blue, or perhaps not"},
}


def text_of(source: str, number: int) -> dict:
    colour, other = COLOURS[number % 4], COLOURS[(number + 1) % 4]
    if source.startswith("preferences"):
        return {"user": f"Which colour is number {number}?", "chosen": f"it is {colour}", "rejected": f"no, {other}"}
    if source.startswith("grid"):
        return {"messages": [TURNS[0], {"role": "assistant", "content": colour}, *TURNS[2:]]}
    return {"user": "What is in it?", "assistant": f"a {colour} thing, number {number}"}


def frames_of(source: str, number: int) -> dict[str, bytes]:
    count = {"grid": 2 + number % 4, "chat": 0}.get(source.removesuffix("_held_out"), 1)
    return {f"{i:03d}.jpg": picture((40 * i + 9 * number) % 255, "JPEG", (224, 224)) for i in range(count)}


def make_results(results: Path) -> Path:
    """Write tokenizer, shards and indices of the sources in COUNTS and of their held-out sources."""
    results.mkdir(parents=True, exist_ok=True)
    words = [turn["content"] for turn in TURNS] + [f"a {colour} square, it is" for colour in COLOURS]
    train_tokenizer(words * 3, 300, results / "tokenizer")
    study = study_of(results)
    for source, count in COUNTS.items():
        for name, many in ((source, count), (f"{source}_held_out", HELD_OUT)):
            kind = study.sources[name].kind
            samples = [
                {"__key__": f"{name}-{i}", **frames_of(name, i), "json": {"file": f"{name}-{i}", **text_of(name, i)}}
                for i in range(many)
            ]
            make_index(results, name, kind, samples)
    return results


def make_index(results: Path, name: str, kind: str, samples: list[dict]):
    tar = write_tar(results / f"{name}.tar", samples)
    out = results / "index" / f"{name}.npz"
    return write_index([tar], out, name, kind, results / "tokenizer", "Describe it.", results)


def study_of(results: Path, **changes) -> Study:
    """The smoke study with these sources and with `changes` of the baseline."""
    settings = {"data.sources": ["grid", "pictures", "chat"], "train.samples": 16, "operation.micro_frames": 20}
    settings |= changes
    only = {"only": {"ablations": ["baseline"]}, "seeds": {"baseline": None}}
    content = {"results": str(results), "baseline": settings, "prepare": [], **only}
    return load_study(merged(read_yaml(ROOT / "config/smoke.yaml"), content), ROOT / "config")


def run_of(results: Path, **changes) -> tuple[Run, Study]:
    study = study_of(results, **changes)
    return study.runs["baseline"], study


def preference_run(results: Path, **changes) -> tuple[Run, Study]:
    """A run on pairs, without a parent."""
    run, study = run_of(results, **changes)
    pairs = {"sources": ("preferences",), "share": {"preference": 1.0}, "loss": "preference"}
    return run.model_copy(update={"data": run.data.model_copy(update=pairs)}), study


def steps_of(run: Run, study: Study, loss: str | None = None, batch_size: int = 6, **share) -> Steps:
    corpus = open_training(run, study)
    return Steps(corpus, drawn_order(run, corpus), run, study, loss or run.data.loss, batch_size, **share)


def spoken(tokenizer, ids: np.ndarray, mask: np.ndarray) -> list[str]:
    """The texts of the scored tokens."""
    edges = np.flatnonzero(np.diff(np.r_[False, mask, False]))
    return [tokenizer.decode(ids[a:b], skip_special_tokens=False) for a, b in zip(edges[::2], edges[1::2], strict=True)]
