"""`fvlm train RUN`: resolve a run, train or continue it, and write its artefacts.

Declared to Snakemake: summary.json, metrics.csv, validation.csv, model/. Beside them and not declared, so that a
failed or killed job keeps them: state/ with checkpoints, metrics logs and the lock.
"""

import hashlib
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_model, save_model

import fvlm
from fvlm.config import add_study_arguments, study_of
from fvlm.data.batches import balanced
from fvlm.data.loader import Corpus, Steps, open_training, validation_steps
from fvlm.data.order import Order, cut_to_flops, cut_to_samples, draw_order
from fvlm.errors import UserError
from fvlm.files import write_beside, write_json
from fvlm.flops import parameters, training_flops
from fvlm.model.build import build_model
from fvlm.schema import Run, Study
from fvlm.train.fill import fill_of, said_of
from fvlm.train.loop import Trainer, device_of, precision_on
from fvlm.train.state import RunLock, write_csv


def add_arguments(parser) -> None:
    parser.add_argument("run", help="name of the run, for example stage1, A6 or 135M-C1-F")
    add_study_arguments(parser)
    parser.add_argument("--digest", help="stop unless the run's configuration has this digest")


def main(args) -> int:
    study = study_of(args)
    if args.run not in study.runs:
        raise UserError(f"no run {args.run!r} in study {study.study!r}; `fvlm plan` lists them")
    run = study.runs[args.run]
    if args.digest and args.digest != run.digest:
        raise UserError(
            f"the configuration of run {run.name!r} changed since Snakemake planned it (digest {run.digest}, planned "
            f"{args.digest}); start snakemake again"
        )
    torch.set_num_threads(run.operation.threads)
    folder = Path(study.results) / "runs" / run.name
    with RunLock(folder / "state"):
        train(run, study, folder)
    return 0


def train(run: Run, study: Study, folder: Path) -> None:
    """Train `run` from its last checkpoint to the end and write its artefacts into `folder`."""
    started = time.time()
    device = device_of(run)
    torch.manual_seed(run.train.seed)
    corpus = open_training(run, study)
    order, flops = planned_order(run, corpus)
    model = build_model(run.model, run.train.seed)
    if run.parent is not None:
        load_model(model, str(_parent_weights(run, folder)))
    model.freeze(run.optim.freeze)
    model.to(device)
    steps = Steps(corpus, order, run, study, run.data.loss, run.optim.batch_size)
    fill = fill_of(steps, flops)
    print(f"{run.name}: {said_of(fill)}", file=sys.stderr, flush=True)
    validation = validation_steps(run, study)
    trainer = Trainer(run, model, steps, validation, np.cumsum(flops), folder / "state",
                      identity(run, study, folder), device)  # fmt: skip
    trainer.train()
    _write_artefacts(trainer, run, folder, _summary(trainer, order, flops, started) | {"fill": fill})


def identity(run: Run, study: Study, folder: Path) -> str:
    """A hash of all that the run's result depends on: its configuration, tokenizer, data and parent's weights."""
    results = Path(study.results)
    files = [results / "tokenizer" / "tokenizer.json"]
    partners = [study.sources[name].held_out for name in run.data.sources]
    names = [*run.data.sources, *(name for name in partners if isinstance(name, str))]
    files += [results / "index" / f"{name}.npz" for name in names]
    if run.parent is not None:
        files.append(_parent_weights(run, folder))
    total = hashlib.sha256(run.digest.encode())
    for path in files:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _parent_weights(run: Run, folder: Path) -> Path:
    """Where a run starts; raises UserError if its parent has not been trained."""
    path = folder.parent / run.parent / "model" / "best.safetensors"
    if not path.is_file():
        raise UserError(f"run {run.name!r} starts from {path}, which is not there; train {run.parent!r} first")
    return path


def planned_order(run: Run, corpus: Corpus) -> tuple[Order, np.ndarray]:
    """The run's samples in training order, rearranged so that steps cost the same, and the training FLOPs of each."""
    order = draw_order(
        corpus.indices,
        corpus.rows,
        run.data.share,
        run.data.weights,
        run.data.static_frames,
        run.data.max_text_tokens,
        run.train.seed,
        run.train.epoch,
    )
    flops = sample_flops(run, corpus, order)
    if run.train.samples is not None:
        order = cut_to_samples(order, run.train.samples, run.name)
    else:
        order = cut_to_flops(order, flops, run.train.flops, run.name)
    places = balanced(order, flops[: len(order)], run.optim.batch_size)
    return order.at(places), flops[places]


def sample_flops(run: Run, corpus: Corpus, order: Order) -> np.ndarray:
    """(n,) training FLOPs of each sample, exact for its own lengths.

    Of a text that is cut the index does not say how many answer tokens are left: all that may be, are counted.
    """
    distinct = np.zeros(len(order), dtype=np.int64)
    scored = np.zeros(len(order), dtype=np.int64)
    for i, index in enumerate(corpus.indices):
        mine = order.source == i
        distinct[mine] = index.frames[order.row[mine]]
        scored[mine] = index.answer_tokens[order.row[mine]]
    if run.data.loss == "all":
        scored = order.text_tokens - 1
    scored = np.minimum(scored, order.text_tokens - 1)
    return training_flops(
        run.model, run.optim.freeze, order.positions, order.text_tokens, scored, encoded_frames=distinct
    )


def _summary(trainer: Trainer, order: Order, flops: np.ndarray, started: float) -> dict:
    run, model = trainer.run, trainer.run.model
    counts = parameters(model)
    last_loss = trainer.metrics.records()[-1]["train_loss"]
    at_step = {r["step"]: r["train_loss"] for r in trainer.metrics.records()}
    final = trainer.final or {
        "step": trainer.step,
        "samples": len(order),
        "flops": float(flops.sum()),
        "val_loss": None,
    }
    best = trainer.best or final
    return {
        "run": run.name, "family": run.family, "digest": run.digest, "seed": run.train.seed, "parent": run.parent,
        "question": run.question, "architecture": model.architecture, "deep_query": model.deep_query,
        "fine_pass": model.fine_pass, "visual_tokens": model.visual_tokens, "encoder": model.encoder.name,
        "language": model.language.name, **{key: run.labels.get(key, "") for key in ("size", "budget", "letter")},
        "frozen": list(run.optim.freeze), **{f"params_{key}": value for key, value in counts.items()},
        "samples": len(order), "samples_planned": run.train.samples, "steps": trainer.step, "flops": float(flops.sum()),
        "flops_budget": run.train.flops, "text_tokens": int(order.text_tokens.sum()),
        "frames": int(order.positions.sum()),
        "final": {**final, "train_loss": last_loss}, "best": {**best, "train_loss": at_step.get(best["step"])},
        "train_s": round(trainer.train_seconds, 3), "wall_s": round(time.time() - started, 3),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)), "git": git_state(),
        "device": torch.cuda.get_device_name() if trainer.device.type == "cuda" else platform.machine(),
        "precision": precision_on(run, trainer.device),
        "versions": {"fvlm": fvlm.__version__} | {name: version(name) for name in ("torch", "transformers", "numpy")},
        "config": run.model_dump(mode="json"),
    }  # fmt: skip


def git_state() -> str:
    """The commit, with `-dirty` where the working tree differs; empty outside a checkout."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip()


def _write_artefacts(trainer: Trainer, run: Run, folder: Path, summary: dict) -> None:
    """summary.json comes last: where it stands, everything else does."""
    model = trainer.model
    write_csv(folder / "metrics.csv", trainer.metrics.records())
    write_csv(folder / "validation.csv", trainer.validations.records())
    write_beside(folder / "model" / "final.safetensors", lambda beside: save_model(model, str(beside)))
    trainer.load_best()
    write_beside(folder / "model" / "best.safetensors", lambda beside: save_model(model, str(beside)))
    write_json(folder / "model" / "run.json", run.model_dump(mode="json"))
    write_json(folder / "summary.json", summary)
