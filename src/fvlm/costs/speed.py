"""Speed of a training: measured by `fvlm calibrate`, or assumed: from the GPU's peak and a stated utilisation, or per
CPU thread."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from fvlm.config.schema import Run, Study
from fvlm.costs.amounts import Amounts
from fvlm.costs.gpus import tflops_of
from fvlm.errors import UserError

CPU, CUDA = "cpu", "cuda"  # as torch calls the devices
# FLOP/s of a CPU thread in training steps, as `fvlm.costs.flops` counts them. Measured on server cores with AVX-512:
# about 40e9 at demo size in float32; 79e9 in float32 and 109e9 in bfloat16 at 135M.
THREAD_FLOPS = {"float32": 50e9, "bfloat16": 80e9}


@dataclass(frozen=True)
class Speed:
    """FLOP/s of each of a run's ranks, by the count of `fvlm.costs.flops`; basis: "measured" or "assumed"."""

    flops_per_s: float
    basis: str


def calibration_path(results: str) -> Path:
    return Path(results) / "calibration.json"


def read_calibration(results: str) -> dict | None:
    """Return the file that `fvlm calibrate` wrote, or None; UserError if it is damaged."""
    path = calibration_path(results)
    if not path.exists():
        return None
    try:
        calibration = json.loads(path.read_text())
        valid = isinstance(calibration["device"], str) and calibration["kind"] in (CPU, CUDA)
        valid = valid and all(model["flops_per_s"] > 0 for model in calibration["models"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise UserError(f"{path}: not a calibration; delete it, or measure again with `fvlm calibrate`")
    return calibration


def model_digest(run: Run) -> str:
    """Return a hash that is equal for runs with the same speed: model, trained parts, precision, micro-batches."""
    operation = run.operation
    content = [
        run.model.for_digest(mode="json", exclude={"encoder": {"weights"}, "language": {"weights"}}),
        sorted(run.optim.freeze), run.train.precision, operation.micro_frames, operation.micro_tokens,
        operation.recompute, bool(operation.gpus), None if operation.gpus else operation.threads,
        -(-run.optim.batch_size // operation.total_ranks), run.optim.ema is not None, operation.splits_weights,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def speed_of(run: Run, study: Study, calibration: dict | None) -> Speed | None:
    """Return the measured speed if this model was measured on the run's device, else the assumed speed.

    returns     None for a run on GPUs if the study states neither a known GPU nor its utilisation
    """
    if calibration is not None and _same_device(run, study, calibration):
        measured = calibration["models"].get(model_digest(run))
        if measured is not None:
            return Speed(measured["flops_per_s"], "measured")
    share = 0.75 if run.operation.recompute else 1.0  # the forward pass, a third of what is counted, is computed again
    if not run.operation.gpus:
        return Speed(share * run.operation.threads * THREAD_FLOPS[run.train.precision], "assumed")
    peak = peak_tflops(study)
    if peak is None or study.gpu.utilisation is None:
        return None
    if run.train.precision == "float32":
        share *= 0.5  # TF32
    return Speed(study.gpu.utilisation * share * peak * 1e12, "assumed")


def peak_tflops(study: Study) -> float | None:
    """Return the dense bfloat16 peak of the study's GPU."""
    if study.gpu is None:
        return None
    return study.gpu.tflops or tflops_of(study.gpu.name)


def _same_device(run: Run, study: Study, calibration: dict) -> bool:
    """True if a calibration holds for a run: of any CPU, or of a GPU whose name contains that of the study's GPU."""
    if not run.operation.gpus:
        return calibration["kind"] == CPU
    named = study.gpu is not None and re.search(rf"\b{re.escape(study.gpu.name)}\b", calibration["device"])
    return calibration["kind"] == CUDA and bool(named)


def hours_of(run: Run, amounts: Amounts, speed: Speed | None) -> float | None:
    """Return the wall-clock hours of a training with its validations, if all ranks keep the speed of one."""
    if speed is None:
        return None
    return (amounts.flops + amounts.validation_flops) / (speed.flops_per_s * run.operation.total_ranks) / 3600
