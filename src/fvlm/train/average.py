"""An exponential moving average of the weights, which is often better than the weights at any one step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fvlm.train.fsdp import own, split_like


class Average:
    """average <- average + (1 - d) (weights - average) after each step, over the parameters that are trained.

    d is `decay`, but at the n-th update at most n / (n + 9): otherwise the average of a short run would be mostly the
    weights it started from.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = [p.detach().clone() for p in self.trained.values()]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        torch._foreach_lerp_([own(w) for w in self.weights], self._trained(), 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own ones, bit for bit, afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, kept in zip(self._trained(), self.weights, strict=True):
            before = weight.clone()
            weight.copy_(own(kept))  # in place: parameters that are split over ranks are known by their memory
            own(kept).copy_(before)

    def _trained(self) -> list[torch.Tensor]:
        return [own(p.detach()) for p in self.trained.values()]

    def state_dict(self) -> dict:
        return {"updates": self.updates, "weights": dict(zip(self.trained, self.weights, strict=True))}

    def load_state_dict(self, state: dict) -> None:
        """raises  ValueError if it is the average of other parameters"""
        if list(state["weights"]) != list(self.trained):
            raise ValueError("the saved average is one of other parameters than those that are trained here")
        self.updates = state["updates"]
        for kept, saved in zip(self.weights, state["weights"].values(), strict=True):
            kept.copy_(split_like(saved, kept))
