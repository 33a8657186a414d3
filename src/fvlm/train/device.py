"""Where a run is computed, and in which precision."""

from contextlib import nullcontext

import torch

from fvlm.schema import Run


def device_of(run: Run) -> torch.device:
    """The GPU, if the run asks for one and there is one."""
    return torch.device("cuda" if run.operation.gpus and torch.cuda.is_available() else "cpu")


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
