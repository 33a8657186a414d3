"""AdamW in three parameter groups, and the three learning rate schedules."""

import math
from inspect import unwrap

import torch
from torch import nn

from fvlm.config.schema import Optim

GROUPS = ("connector", "dino", "llm")


class AdamW(torch.optim.AdamW):
    """torch's AdamW without the wrappers that import torch's compiler on their first call.

    That takes 1.6 CPU seconds, and nothing here is compiled.
    """

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)


def make_optimizer(groups: dict[str, dict[str, nn.Parameter]], optim: Optim) -> AdamW:
    """Return the optimizer of the trainable parameters; `groups` maps connector, dino, llm to named parameters.

    Weight decay acts on matrices only, not on norms, biases, layer scales and embeddings.
    """
    param_groups = []
    for name in GROUPS:
        trainable = {key: p for key, p in groups[name].items() if p.requires_grad}
        decayed = [p for key, p in trainable.items() if p.ndim >= 2 and "embed" not in key]
        plain = [p for key, p in trainable.items() if p.ndim < 2 or "embed" in key]
        for parameters, decay in ((decayed, optim.weight_decay), (plain, 0.0)):
            if parameters:
                param_groups.append({"params": parameters, "weight_decay": decay, "group": name, "lr": 0.0})
    return AdamW(param_groups, betas=optim.betas, fused=True)


def rates_at(optim: Optim, step: int, steps: int) -> dict[str, float]:
    """Return the learning rate of each group for update `step` (from 0) of `steps`.

    Linear warm-up, then the schedule: `cosine` decay to 0, which the step after the last one would have; `constant`; or
    `converging`, a cosine path from lr to final_lr, which may fall for one group and rise for another.
    """
    warm = max(1, round(optim.warmup * steps))
    rise = min(1.0, (step + 1) / warm)
    decay = steps - warm + (optim.schedule == "cosine")
    progress = min(1.0, max(0.0, (step + 1 - warm) / max(1, decay)))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))  # 1 at the start, 0 at the end
    rates = {}
    for name in GROUPS:
        start = getattr(optim.lr, name)
        end = getattr(optim.final_lr, name) if optim.schedule == "converging" else 0.0
        level = start if optim.schedule == "constant" else end + (start - end) * cosine
        rates[name] = rise * level
    return rates


def set_rates(optimizer: torch.optim.Optimizer, rates: dict[str, float]) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rates[group["group"]]
