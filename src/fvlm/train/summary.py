"""What a finished run says of itself: run_summary.json."""

import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import fvlm
from fvlm.data.order import Order
from fvlm.flops import parameters
from fvlm.train.device import precision_on
from fvlm.train.hardware import hardware
from fvlm.train.loop import Trainer


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
