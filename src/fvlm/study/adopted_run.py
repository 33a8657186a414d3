"""Take a finished run with weights of another program into a study: a folder, a checkpoint, or a file of weights.

The results get the form of a training of this project. The summary lists how the run differs from its configuration.
"""

import math
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from fvlm.analysis import study_files
from fvlm.analysis.finished import GRID, short_names
from fvlm.batch import Batch
from fvlm.config.schema import Run, Study
from fvlm.config.trained import (
    ADOPTED,
    CONFIGURATION,
    FILES,
    FINISHED,
    LAST_WEIGHTS,
    METRICS,
    OF_A_RUN,
    VALIDATION,
    WEIGHTS,
    digests_of_files,
    keep_earlier,
    summary_in,
)
from fvlm.data.batches.loader import data_files, validation_steps
from fvlm.errors import UserError
from fvlm.evaluate.read import SOURCES, SPLIT
from fvlm.files import write_json
from fvlm.model.build import build_model
from fvlm.model.elsewhere import check_weights, read_weights, renamed
from fvlm.model.foveated import VideoLanguageModel
from fvlm.records import relinked, weights_in, write_csv
from fvlm.study.adopted_settings import check_settings, differences, own_flops, real_settings
from fvlm.study.status import refuse_held
from fvlm.train.state import write_weights
from fvlm.train.summary import description, versions

TRAINED = (  # columns of metrics.csv
    *("step", "samples", "flops", "train_loss", "loss_fine", "loss_coarse", "fine_coarse_ratio", "grad_norm"),
    *("lr_connector", "lr_dino", "lr_llm", "samples_per_s", "memory_gb"),
)
VALIDATED = (*("step", "samples", "flops", "val_loss", "train_loss", "loss_fine", "loss_coarse", "attention_entropy"),)
POINT = VALIDATED[:5]  # what the summary holds of the final and of the best evaluation
FRAMES, TOKENS = 4, 32  # of the sample that is made up where a study has no held-out samples yet


@dataclass
class Found:
    """A run as it was found.

    best, last   files of weights
    beside       what the checkpoint `best` holds beside its weights
    files        the metrics and summary files that were read
    facts        values of `study_files.SUMMARY`
    foreign      the weights have the names of the published study
    coarse       precisions below float32 in which the best weights are stored
    left_out     a sentence for each file of metrics with rows that cannot be read
    """

    best: Path
    last: Path
    beside: dict
    files: list[Path] = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    training: list[dict] = field(default_factory=list)
    evaluations: list[dict] = field(default_factory=list)
    foreign: bool = False
    coarse: tuple[str, ...] = ()
    left_out: list[str] = field(default_factory=list)

    @property
    def samples(self) -> int | None:
        """Samples that the run was trained on; None if no file holds it."""
        seen = [row["samples"] for row in (*self.training, *self.evaluations)]
        known = (self.facts.get("samples"), max(seen, default=None), self.beside.get("data_position"))
        return next((int(value) for value in known if isinstance(value, int | float) and value > 0), None)

    @property
    def steps(self) -> int | None:
        known = (self.facts.get("steps"), self.beside.get("step"))
        return next((int(value) for value in known if isinstance(value, int | float)), None)


def adopt(source: Path, run: Run, study: Study) -> list[str]:
    """Write the results of a finished run into the study's folder of `run`; return the lines of a report.

    raises   UserError if the run is not that of the configuration, or a file of it is damaged
    """
    folder = Path(study.results) / "runs" / run.name
    refuse_held(folder)
    found, model = _read(source, run, study)
    checked = _checked_loss(model, run, study)
    lines = [f"{run.name}: adopted from {source}"]
    lines.append(f"loss {checked['loss']:.4f} on {checked['on']}" + _beside(found))
    if not found.training and not found.evaluations:
        lines.append(f"no metrics_*.csv in {source}: the run has no curves")
    real = real_settings(found.beside.get("config"), found.training)
    real |= {"train.samples": found.samples} if found.samples else {}
    notes = differences(run, study, real, found.samples, found.foreign) + _about_weights(found)
    notes += [f"left out: {sentence}" for sentence in found.left_out]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{run.name}.", suffix=".part", dir=folder.parent) as part:
        part = Path(part)
        _write_weights(found, model, run, part)
        flops = own_flops(run, study)
        _write_records(found, flops, part)
        write_json(part / CONFIGURATION, run.model_dump(mode="json") | {SOURCES: study.shown_to(run), SPLIT: ADOPTED})
        summary = _summary(found, run, flops) | {FILES: digests_of_files(part)}
        summary[ADOPTED] = {
            "from": str(source), "files": [str(path) for path in (found.best, found.last, *found.files)],
            "settings": real, "differences": notes, "checked": checked,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "versions": versions(),
        }  # fmt: skip
        write_json(part / FINISHED, summary)
        _move(part, folder, summary)
    return [
        *lines,
        *(f"  {note}" for note in notes),
        f"{folder}: Snakemake and `fvlm status` take this run as finished",
    ]


# --- reading ---


def _read(source: Path, run: Run, study: Study) -> tuple[Found, VideoLanguageModel]:
    """Return what a folder or file holds of a run, and the run's model with its best weights."""
    if (source / FINISHED).is_file():
        raise UserError(f"{source} is a run of this project; copy the whole folder to the results: cp -a")
    best = weights_in(source)
    last = relinked(source / "latest.pt") or next(iter(sorted(source.glob("step_*.pt"))[-1:]), best)
    stored, beside = read_weights(best)
    state = _checked(stored, run, best)
    beside = {name: value for name, value in beside.items() if _is_plain(value)}
    found = Found(best, last, beside, foreign=any(name not in state for name in stored))
    precisions = {str(tensor.dtype).removeprefix("torch.") for tensor in stored.values() if tensor.is_floating_point()}
    found.coarse = tuple(sorted(precisions - {"float32", "float64"}))
    if source.is_dir():
        _add_records(found, source, run, study)
    real = real_settings(beside.get("config"), found.training)
    check_settings(run, real, str(best))
    model = build_model(run.model, run.train.seed, pretrained=False)
    model.load_state_dict(state)
    return found, model.eval()


def _is_plain(value: object) -> bool:
    return isinstance(value, dict | str | int) or (isinstance(value, float) and math.isfinite(value))


def _checked(state: dict[str, torch.Tensor], run: Run, path: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a file under this project's names, after a check that they are those of the run's model."""
    state = renamed(state)
    check_weights(state, run.model, f"{path} for run {run.name!r}")
    return {name: tensor.float() for name, tensor in state.items()}


def _add_records(found: Found, source: Path, run: Run, study: Study) -> None:
    """Add the metrics and the summary of a folder, which must hold one run."""
    runs = study_files.found_in(source, unfinished=True)
    if len(runs) > 1:
        raise UserError(f"{source} holds several runs ({', '.join(one.name for one in runs)}); name the folder of one")
    for one in runs:
        name = short_names([one.name], study.comparisons.ablations)[one.name]
        if name != run.name and (name in study.runs or GRID.fullmatch(name)):
            raise UserError(f"{source} holds run {one.name}, not {run.name}; write --run {name}")
        if one.left_out:
            raise UserError(one.left_out[0])
        found.facts, found.files = one.facts, [*filter(None, [one.summary]), *one.metrics]
        found.training, found.evaluations = one.read(strict=True)
        found.left_out = one.left_out


# --- checking ---


@torch.no_grad()
def _checked_loss(model: VideoLanguageModel, run: Run, study: Study) -> dict:
    """Return the loss per scored token, and what it was computed on: held-out samples if they are there.

    raises   UserError if it is not finite
    """
    steps = None
    if all(path.is_file() for path in data_files(run, study)):
        steps = validation_steps(run, study)
    if steps:
        batch = steps[0][0]
        on = f"{len(batch)} held-out samples of {', '.join(dict.fromkeys(batch.sources))}"
    else:
        batch, on = _made_up(run), "random frames and text, since this study has no held-out samples yet"
    output = model(batch)
    loss = float(output.loss_sum_B.sum() / output.count_B.sum())
    if not math.isfinite(loss):
        raise UserError(
            f"run {run.name!r}: the weights give a loss of {loss} on {on}; they are damaged: copy them again"
        )
    return {"loss": loss, "on": on}


def _made_up(run: Run) -> Batch:
    """Return a sample of random frames and text."""
    draw, size = torch.Generator().manual_seed(0), run.model.encoder.image
    frames = FRAMES if run.model.visual_tokens else 0
    return Batch(
        frames=torch.randint(0, 256, (frames, size, size, 3), dtype=torch.uint8, generator=draw),
        frame_index=torch.arange(frames),
        frame_counts=torch.tensor([frames]),
        token_ids=torch.randint(0, run.model.language.vocabulary, (TOKENS,), generator=draw),
        token_counts=torch.tensor([TOKENS]),
        loss_mask=torch.arange(TOKENS) > 0,
        keys=["random"],
        sources=["random"],
    )


def _beside(found: Found) -> str:
    """Return the run's own validation loss, to compare with."""
    known = [row["val_loss"] for row in found.evaluations] or [found.facts.get("best_val_loss")]
    return "" if known[0] is None else f"; its own lowest validation loss is {min(known):.4f}"


def _about_weights(found: Found) -> list[str]:
    """Return notes on the weights: of another step than the best evaluation, one file for both, less precise."""
    notes, best, step = [], _best(found), found.beside.get("step")
    if best.get("step") and step is not None and step != best["step"]:
        notes.append(
            f"weights: {found.best.name} is of step {step}; the validation loss was lowest at step {best['step']}, of "
            "which there is no checkpoint"
        )
    if found.coarse:
        notes.append(f"weights: some or all are stored in {', '.join(found.coarse)}; here they are kept in float32")
    if found.best == found.last:
        notes.append(f"weights: {found.best.name} stands for the best and for the final weights")
    return notes


# --- writing ---


def _write_weights(found: Found, model: VideoLanguageModel, run: Run, part: Path) -> None:
    for path, name in ((found.best, WEIGHTS), (found.last, LAST_WEIGHTS)):
        if path != found.best:
            model.load_state_dict(_checked(read_weights(path)[0], run, path))
        weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        (part / name).parent.mkdir(exist_ok=True)
        write_weights(part / name, lambda file, weights=weights: save_file(weights, str(file)))


def _write_records(found: Found, flops: float | None, part: Path) -> None:
    for rows in (found.training, found.evaluations):
        for row in rows:
            row["flops"] = None if flops is None else row["samples"] * flops
    write_csv(part / METRICS, found.training, TRAINED)
    write_csv(part / VALIDATION, found.evaluations, VALIDATED)


def _best(found: Found) -> dict:
    """Return the evaluation with the lowest validation loss; fields that no file holds are None."""
    if found.evaluations:
        return min(found.evaluations, key=lambda row: row["val_loss"])
    facts, beside = found.facts, found.beside
    step, loss = facts.get("best_step", beside.get("step")), facts.get("best_val_loss", beside.get("metric_value"))
    return {"step": step, "val_loss": loss}


def _summary(found: Found, run: Run, flops: float | None) -> dict:
    """Return the summary of the run, with the fields of a training here; None where a value is not known."""
    samples, wall_s = found.samples, found.facts.get("wall_s")
    last = found.evaluations[-1] if found.evaluations else {"step": found.steps}
    last = {"train_loss": found.facts.get("final_train_loss")} | {k: v for k, v in last.items() if v is not None}
    best = _best(found)
    return description(run) | {
        "origin": ADOPTED, "samples": samples, "samples_planned": run.train.samples, "steps": found.steps,
        "flops": samples * flops if samples and flops else None, "flops_budget": run.train.flops,
        "text_tokens": None, "frames": None,
        "final": {name: last.get(name) for name in POINT}, "best": {name: best.get(name) for name in POINT},
        "best_by": "validation loss", "wall_s": wall_s,
        "samples_per_s": samples / wall_s if samples and wall_s else None,
        "finished": found.facts.get("time") or found.beside.get("timestamp"),
        "git": {"commit": found.facts.get("git"), "dirty": None},
        "config": run.model_dump(mode="json"),
    }  # fmt: skip


def _move(part: Path, folder: Path, summary: dict) -> None:
    """Put the finished files into the run's folder, the summary last; a finished run that is there is kept."""
    before = summary_in(folder).get(FILES) or {}
    if any(before.get(name) != summary[FILES][name] for name in (WEIGHTS, LAST_WEIGHTS, METRICS, VALIDATION)):
        keep_earlier(folder, None)
    (folder / FINISHED).unlink(missing_ok=True)
    shutil.rmtree(folder / "attention", ignore_errors=True)  # of an earlier training
    for name in (*OF_A_RUN[1:], FINISHED):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(part / name, folder / name)
