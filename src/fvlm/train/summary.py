"""The summary of a finished run: run_summary.json."""

import platform
import subprocess
import time
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np
import torch

import fvlm
from fvlm.config.schema import Run
from fvlm.costs.flops import parameters
from fvlm.data.batches.loader import Steps
from fvlm.device import hardware, precision_on
from fvlm.model.packing import first_fit

STEPS_OF_FILL = 1000  # at most, evenly spaced


def description(run: Run) -> dict:
    """Return the fields of the summary that the run's configuration gives."""
    model = run.model
    return {
        "run": run.name, "family": run.family, "digest": run.digest, "seed": run.train.seed, "parent": run.parent,
        "question": run.question, "architecture": model.architecture, "deep_query": model.deep_query,
        "fine_pass": model.fine_pass, "fine_passes": model.fine_passes, "visual_tokens": model.visual_tokens,
        "question_first": run.data.question_first, "loss": run.data.loss, "ema": run.optim.ema,
        "encoder": model.encoder.name, "language": model.language.name,
        **{key: run.labels.get(key, "") for key in ("size", "budget", "letter")}, "frozen": list(run.optim.freeze),
        **{f"params_{key}": value for key, value in parameters(model).items()},
    }  # fmt: skip


def summary_of(trainer) -> dict:
    """Return every field of the summary; `trainer` is a `Trainer` (fvlm.train.loop) that has finished its run."""
    run, spent, setup = trainer.run, trainer.spent, trainer.setup
    order = setup.steps.order
    speed = float(trainer.work[-1]) / spent.steps
    return description(run) | {
        "samples": len(order), "samples_planned": run.train.samples, "steps": trainer.step,
        "flops": float(setup.flops.sum()), "flops_budget": run.train.flops,
        "text_tokens": int(order.text_tokens.sum()), "frames": int(order.positions.sum()),
        "final": trainer.last_evaluation, "best": trainer.best,
        "best_by": "training loss" if trainer.best_by == "train_loss" else "validation loss",
        "last_loss": _last_of_sources(trainer.metrics.records()),
        "wall_s": round(spent.wall, 3), "train_s": round(spent.steps, 3), "validation_s": round(spent.validations, 3),
        "samples_per_s": len(order) / spent.steps, "tflops": speed / 1e12,
        "mfu": speed / setup.peak if setup.peak else None, "checkpoints": spent.about_checkpoints(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git": git_state(), "versions": versions(), "hardware": hardware(), "device": trainer.device.type,
        "ranks": trainer.ranks.count, "precision": precision_on(run, trainer.device),
        "threads": torch.get_num_threads(),
        "config": run.model_dump(mode="json"),
        "fill": setup.fill,
    }  # fmt: skip


def _last_of_sources(records: list[dict]) -> dict[str, float]:
    """Return, by source, the training loss of the last step in which the source had a sample."""
    last = {key: value for record in records for key, value in record.items() if key.startswith("loss:")}
    return {key.removeprefix("loss:"): last[key] for key in sorted(last)}


def versions() -> dict[str, str]:
    packages = ("torch", "transformers", "numpy", "safetensors")
    return {"python": platform.python_version(), "fvlm": fvlm.__version__} | {name: version(name) for name in packages}


def git_state() -> dict[str, str | bool | None]:
    """Return the commit of the package and whether its working tree differs; None outside a git checkout."""
    options = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "timeout": 10, "check": True}
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        commit, changes = (subprocess.run(command, **options).stdout.strip() for command in commands)
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changes)}


def fill_of(steps: Steps, flops: np.ndarray) -> dict[str, float]:
    """Return how full the micro-batches are, shares between 0 and 1, computed from lengths alone.

    flops       (n,) training FLOPs of each sample of the order
    returns     frames, tokens: used share of the budgets `micro_frames` and `micro_tokens`
                rows: share of the cells of the language model's packed rows that hold a token
                spread: standard deviation of the steps' FLOPs divided by their mean, without the last, shorter step
                micro_batches: mean number per step, of all ranks
    """
    chosen = np.unique(np.linspace(0, len(steps) - 1, STEPS_OF_FILL).round().astype(int))
    visual, order = steps.visual_tokens, steps.order
    used, cells, count = np.zeros(2), np.zeros(2), 0
    for step in chosen.tolist():
        for group in chain.from_iterable(steps.groups_by_rank(step)):
            positions, tokens = order.at(group).sequences()
            _, _, rows, width = first_fit(positions * visual + tokens)
            used += (positions.sum(), tokens.sum())
            cells += ((positions * visual + tokens).sum(), rows * width)
            count += 1
    full = len(order) // steps.batch_size
    step_flops = flops[: full * steps.batch_size].reshape(full, -1).sum(1)
    return {
        "frames": used[0] / (count * steps.most_positions),
        "tokens": used[1] / (count * steps.most_tokens),
        "rows": cells[0] / cells[1],
        "spread": float(step_flops.std() / step_flops.mean()) if full else 0.0,
        "micro_batches": count / len(chosen),
    }


def describe_fill(fill: dict[str, float]) -> str:
    return (
        f"{fill['micro_batches']:.1f} micro-batches per step, which use {fill['frames']:.0%} of micro_frames and "
        f"{fill['tokens']:.0%} of micro_tokens; {fill['rows']:.0%} of the packed rows are tokens; "
        f"the steps' FLOPs differ by {fill['spread']:.1%}"
    )
