"""An exponential moving average of the weights, which is often better than the weights of any single step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fvlm.train.fsdp import local_part, split_like


class Average:
    """The average of the trained parameters: average <- average + (1 - d) (weights - average) after each step.

    d is `decay`, but at most n / (n + 9) at the n-th update: otherwise the average of a short run would be mostly its
    initial weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = [p.detach().clone() for p in self.trained.values()]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        torch._foreach_lerp_([local_part(w) for w in self.weights], self._current(), 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights; afterwards its own ones again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(self._current(), self.weights, strict=True):
            before = weight.clone()
            weight.copy_(local_part(average))  # in place: FSDP keeps references to this memory
            local_part(average).copy_(before)

    def _current(self) -> list[torch.Tensor]:
        return [local_part(p.detach()) for p in self.trained.values()]

    def state_dict(self) -> dict:
        return {"updates": self.updates, "weights": dict(zip(self.trained, self.weights, strict=True))}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, average in zip(self.trained, self.weights, strict=True):
            average.copy_(split_like(state["weights"][name], average))
