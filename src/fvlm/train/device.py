"""Where a run is computed, and in which precision."""

import os
from contextlib import nullcontext

import torch

from fvlm.errors import UserError
from fvlm.schema import Run


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
