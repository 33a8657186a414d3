"""The device of a run, its precision there, and a description of the machine."""

import os
import platform
import re
import resource
import subprocess
from contextlib import nullcontext
from pathlib import Path

import psutil
import torch

from fvlm.config.schema import Gpu, Run
from fvlm.costs.gpus import tflops_of
from fvlm.errors import UserError

STATUS = Path("/proc/self/status")


def device_of(run: Run, local: int = 0, count: int = 1) -> torch.device:
    """Return the run's device: a GPU if `operation.gpus` is above 0 and there is one, else the CPU.

    local, count   number of this process on its node, and of all processes of the run; each has a GPU of its own
    raises         UserError if there are fewer GPUs
    """
    if not run.operation.gpus or not torch.cuda.is_available():
        return torch.device("cpu")
    if count == 1:
        return torch.device("cuda")
    visible = torch.cuda.device_count()
    if visible == 1 and os.environ.get("CUDA_VISIBLE_DEVICES"):  # the scheduler shows each process its own
        local = 0
    if local >= visible:
        raise UserError(
            f"run {run.name!r}: process {local} of this node sees {visible} GPUs and needs one of its own; start as "
            "many processes as there are GPUs, or set operation.gpus to 0"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def cpu_has_bfloat16() -> bool:
    """True if this CPU computes in bfloat16; False if it only emulates it."""
    can = torch.cpu.get_capabilities()
    return any(can.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def precision_on(run: Run, device: torch.device) -> str:
    """Return the precision of a run on a device: a CPU without bfloat16 computes in float32."""
    if device.type == "cpu" and not cpu_has_bfloat16():
        return "float32"
    return run.train.precision


def autocast(run: Run, device: torch.device):
    """Return the context of a forward pass in the run's precision; weights and loss stay float32."""
    if precision_on(run, device) == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def peak_flops(device: torch.device, gpu: Gpu | None, precision: str) -> float | None:
    """Return the peak FLOP/s of a device in a precision, for the utilisation; None if it is not known.

    gpu     the study's GPU, whose `tflops` replaces the table's
    """
    if device.type != "cuda":
        return None
    tflops = gpu.tflops if gpu is not None and gpu.tflops is not None else tflops_of(torch.cuda.get_device_name(device))
    if tflops is None:
        return None
    # float32 runs multiply in TF32, at half the rate of bfloat16
    return tflops * 1e12 * (1.0 if precision == "bfloat16" else 0.5)


def memory_gb(device: torch.device) -> float:
    """Return the peak memory so far in 2^30 bytes: of tensors on a GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if STATUS.exists():  # getrusage would return the parent's peak if it was higher
        return int(re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # bytes on macOS


def gpu_of(device: torch.device) -> tuple[str, float] | None:
    """Return name and memory in GB of a GPU; None for a CPU."""
    if device.type != "cuda":
        return None
    about = torch.cuda.get_device_properties(device)
    return about.name, about.total_memory / 2**30


def hardware() -> dict:
    """Return a description of this machine for the run's summary; unknown values are None."""
    memory_gb = round(psutil.virtual_memory().total / 2**30, 1)
    description = {"cpu": _cpu_name(), "cores": os.cpu_count(), "memory_gb": memory_gb, "gpu": None}
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(torch.cuda.current_device())
        description |= {
            "gpu": about.name,
            "gpus": torch.cuda.device_count(),
            "gpu_memory_gb": round(about.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    return description


def _cpu_name() -> str | None:
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        lines = []
    return lines[0] if lines else platform.processor() or platform.machine() or None


def _driver() -> str | None:
    try:
        result = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = result.stdout.split()
    return lines[0] if result.returncode == 0 and lines else None
