"""What a finished run says of itself: run_summary.json."""

import platform
import subprocess
import time
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np
import torch

import fvlm
from fvlm.costs.flops import parameters
from fvlm.data.batches.loader import Steps
from fvlm.data.batches.order import Order
from fvlm.device import hardware, precision_on
from fvlm.model.packing import first_fit
from fvlm.train.loop import Trainer

MOST_STEPS = 1000  # looked at for the fill, evenly spaced


def summary_of(trainer: Trainer, order: Order, flops: np.ndarray) -> dict:
    """Every field of a finished run's summary; `flops` (n,) of the samples of its order."""
    run, model, spent = trainer.run, trainer.run.model, trainer.spent
    return {
        "run": run.name, "family": run.family, "digest": run.digest, "seed": run.train.seed, "parent": run.parent,
        "question": run.question, "architecture": model.architecture, "deep_query": model.deep_query,
        "fine_pass": model.fine_pass, "fine_passes": model.fine_passes, "visual_tokens": model.visual_tokens,
        "question_first": run.data.question_first, "loss": run.data.loss, "ema": run.optim.ema,
        "encoder": model.encoder.name, "language": model.language.name,
        **{key: run.labels.get(key, "") for key in ("size", "budget", "letter")}, "frozen": list(run.optim.freeze),
        **{f"params_{key}": value for key, value in parameters(model).items()},
        "samples": len(order), "samples_planned": run.train.samples, "steps": trainer.step,
        "flops": float(flops.sum()), "flops_budget": run.train.flops,
        "text_tokens": int(order.text_tokens.sum()), "frames": int(order.positions.sum()),
        "final": trainer.final, "best": trainer.best,
        "best_by": "training loss" if trainer.measure == "train_loss" else "validation loss",
        "last_loss": _last_of_sources(trainer.metrics.records()),
        "wall_s": round(spent.wall, 3), "train_s": round(spent.steps, 3), "validation_s": round(spent.validations, 3),
        **_speed(trainer, len(order)), "checkpoints": spent.about_checkpoints(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git": git_state(), "versions": versions(), "hardware": hardware(), "device": trainer.device.type,
        "ranks": trainer.ranks.count, "precision": precision_on(run, trainer.device),
        "threads": torch.get_num_threads(),
        "config": run.model_dump(mode="json"),
    }  # fmt: skip


def _last_of_sources(records: list[dict]) -> dict[str, float]:
    """The training loss of the last step in which a source had a sample, by source."""
    last = {key: value for record in records for key, value in record.items() if key.startswith("loss:")}
    return {key.removeprefix("loss:"): last[key] for key in sorted(last)}


def _speed(trainer: Trainer, samples: int) -> dict[str, float | None]:
    """Means over all training steps, with the waits for data."""
    speed = float(trainer.work[-1]) / trainer.spent.steps
    return {
        "samples_per_s": samples / trainer.spent.steps,
        "tflops": speed / 1e12,
        "mfu": speed / trainer.peak if trainer.peak else None,
    }


def versions() -> dict[str, str]:
    packages = ("torch", "transformers", "numpy", "safetensors")
    return {"python": platform.python_version(), "fvlm": fvlm.__version__} | {name: version(name) for name in packages}


def git_state() -> dict[str, str | bool | None]:
    """The commit that the package was run from and whether the working tree differs; None outside a checkout."""
    said = []
    for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        try:
            done = subprocess.run(
                ["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return {"commit": None, "dirty": None}
        if done.returncode:
            return {"commit": None, "dirty": None}
        said.append(done.stdout.strip())
    return {"commit": said[0], "dirty": bool(said[1])}


def fill_of(steps: Steps, flops: np.ndarray) -> dict[str, float]:
    """Shares between 0 and 1, from lengths alone.

    flops       (n,) training FLOPs of each sample of the order
    returns     frames, tokens: what micro-batches use of the budgets `micro_frames` and `micro_tokens`
                rows: cells of the language model's packed rows that hold a token; the others are computed for nothing
                spread: standard deviation of the steps' FLOPs over their mean, the last and shorter step left out
                micro_batches: mean number per step, of all ranks
    """
    chosen = np.unique(np.linspace(0, len(steps) - 1, MOST_STEPS).round().astype(int))
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
    of_step = flops[: full * steps.batch_size].reshape(full, -1).sum(1)
    return {
        "frames": used[0] / (count * steps.most_positions),
        "tokens": used[1] / (count * steps.most_tokens),
        "rows": cells[0] / cells[1],
        "spread": float(of_step.std() / of_step.mean()) if full else 0.0,
        "micro_batches": count / len(chosen),
    }


def said_of(fill: dict[str, float]) -> str:
    return (
        f"{fill['micro_batches']:.1f} micro-batches a step, {fill['frames']:.0%} of micro_frames and "
        f"{fill['tokens']:.0%} of micro_tokens used; {fill['rows']:.0%} of the packed rows are tokens; "
        f"steps' FLOPs differ by {fill['spread']:.1%}"
    )
