"""The measurements of `fvlm calibrate`: a model's training steps on this machine."""

import gc
import time
from statistics import median

import torch

from fvlm.config.schema import Run, Study
from fvlm.costs.memory import GB, predicted_bytes
from fvlm.costs.speed import CPU, CUDA, calibration_path, read_calibration
from fvlm.device import device_of, hardware, memory_gb, precision_on
from fvlm.files import write_json
from fvlm.study.trial import Trial, expected, flops_of, step_of

WARM, LEAST, MOST = 2, 5, 50  # warm-up steps; fewest and most measured steps


def timed(run: Run, study: Study, seconds: float) -> dict:
    """Train a run's model for about `seconds`; return the medians over the steps."""
    device = device_of(run)
    torch.set_num_threads(run.operation.threads)
    if device.type == CUDA:
        torch.set_float32_matmul_precision("high")
        torch.cuda.reset_peak_memory_stats(device)
    trial, rates, times = Trial(run, device), [], []
    for number in range(WARM + MOST):
        samples = expected(run, study, -(-run.optim.batch_size // run.operation.total_ranks), seed=number)
        step_s, _ = trial.step(step_of(samples, run, seed=number))
        if number >= WARM:
            times.append(step_s)
            rates.append(flops_of(samples, run) / step_s)
            if len(times) >= LEAST and sum(times) >= seconds:
                break
    result = {
        "run": run.name, "encoder": run.model.encoder.name, "language": run.model.language.name,
        "architecture": run.model.architecture, "precision": precision_on(run, device),
        "steps": len(times), "samples_per_step": len(samples), "seconds_per_step": median(times),
        "flops_per_s": median(rates), "memory_gb": memory_gb(device),
        "predicted_gb": predicted_bytes(run) / GB if device.type == CUDA else None,
    }  # fmt: skip
    del trial
    gc.collect()
    if device.type == CUDA:
        torch.cuda.empty_cache()
    return result


def store(study: Study, digest: str, result: dict, device: torch.device) -> None:
    """Add a model to the calibration, which replaces a calibration of another machine."""
    machine = hardware()
    name = machine["gpu"] if device.type == CUDA else f"{machine['cpu']}"
    known = read_calibration(study.results)
    models = known["models"] if known is not None and known["device"] == name else {}
    write_json(calibration_path(study.results), {
        "device": name, "kind": CUDA if device.type == CUDA else CPU, "torch": torch.__version__,
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "models": models | {digest: result},
    })  # fmt: skip
