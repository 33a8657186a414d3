"""The device of a run, its precision there, and a description of the machine."""

import os
import platform
import re
import resource
import subprocess
from contextlib import nullcontext
from pathlib import Path

import torch

from fvlm.config.schema import Gpu, Run
from fvlm.costs.gpus import tflops_of
from fvlm.errors import UserError

STATUS = Path("/proc/self/status")


def device_of(run: Run, local: int = 0, count: int = 1) -> torch.device:
    """The GPU, if the run asks for one and there is one.

    local, count   which process of this node this one is, and how many train the run: each has a GPU of its own
    raises         UserError if there are fewer
    """
    if not run.operation.gpus or not torch.cuda.is_available():
        return torch.device("cpu")
    if count == 1:
        return torch.device("cuda")
    seen = torch.cuda.device_count()
    if seen == 1 and os.environ.get("CUDA_VISIBLE_DEVICES"):  # the scheduler shows each process its own
        local = 0
    if local >= seen:
        raise UserError(
            f"run {run.name!r}: process {local} of this node finds {seen} GPUs and needs one of its own; start as many "
            "processes as there are GPUs, or set operation.gpus to 0"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def cpu_has_bfloat16() -> bool:
    """Does this CPU compute in bfloat16, or can it only emulate it?"""
    can = torch.cpu.get_capabilities()
    return any(can.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def precision_on(run: Run, device: torch.device) -> str:
    """The precision that a run really has here: bfloat16 falls back to float32 on a CPU without it."""
    if device.type == "cpu" and not cpu_has_bfloat16():
        return "float32"
    return run.train.precision


def autocast(run: Run, device: torch.device):
    """Context of a forward pass in the run's precision; weights and loss stay float32."""
    if precision_on(run, device) == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def peak_flops(device: torch.device, gpu: Gpu | None, precision: str) -> float | None:
    """FLOP/s that `device` can reach at most in `precision`, for the utilisation; None where it is not known.

    gpu     the study's, whose `tflops` counts more than the table
    """
    if device.type != "cuda":
        return None
    tflops = gpu.tflops if gpu is not None and gpu.tflops is not None else tflops_of(torch.cuda.get_device_name(device))
    if tflops is None:
        return None
    # float32 runs multiply in TF32, at half the rate of bfloat16
    return tflops * 1e12 * (1.0 if precision == "bfloat16" else 0.5)


def memory_gb(device: torch.device) -> float:
    """Most memory used so far, in 2^30 bytes: tensors on a GPU, or on a CPU the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if STATUS.exists():  # getrusage would tell the parent's peak, where that was higher
        return int(re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # bytes on macOS


def gpu_of(device: torch.device) -> tuple[str, float] | None:
    """Name and memory in GB of a GPU; None of a CPU."""
    if device.type != "cuda":
        return None
    about = torch.cuda.get_device_properties(device)
    return about.name, about.total_memory / 2**30


def hardware() -> dict:
    """For the run's summary; what cannot be found out is None."""
    found = {"cpu": _cpu_name(), "cores": os.cpu_count(), "memory_gb": _memory_gb(), "gpu": None}
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(torch.cuda.current_device())
        found |= {
            "gpu": about.name,
            "gpus": torch.cuda.device_count(),
            "gpu_memory_gb": round(about.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    return found


def _cpu_name() -> str | None:
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        lines = []
    return lines[0] if lines else platform.processor() or platform.machine() or None


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _driver() -> str | None:
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = said.stdout.split()
    return lines[0] if said.returncode == 0 and lines else None
