"""An exponential moving average of the weights, which is often better than the weights at any one step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
        torch._foreach_lerp_(self.weights, [p.detach() for p in self.trained.values()], 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own ones, bit for bit, afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, parameter in enumerate(self.trained.values()):
            parameter.data, self.weights[i] = self.weights[i], parameter.data

    def state_dict(self) -> dict:
        return {"updates": self.updates, "weights": dict(zip(self.trained, self.weights, strict=True))}

    def load_state_dict(self, state: dict) -> None:
        """raises  ValueError if it is the average of other parameters"""
        if list(state["weights"]) != list(self.trained):
            raise ValueError("the saved average is one of other parameters than those that are trained here")
        self.updates = state["updates"]
        for own, saved in zip(self.weights, state["weights"].values(), strict=True):
            own.copy_(saved)
