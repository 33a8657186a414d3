"""Sums over the batches of a step or of a validation, of one process and of all that train together."""

from collections import Counter

import torch

from fvlm.train.objective import Terms
from fvlm.train.ranks import Ranks


class Totals:
    """They stay on the device until they are read, all at once."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.values: list[torch.Tensor] = []
        self.counts: Counter[str] = Counter()

    def add(self, terms: Terms) -> None:
        self.names += terms.sums
        self.values += terms.sums.values()
        self.counts.update(terms.counts)

    def read(self, *others: torch.Tensor) -> tuple[dict[str, float], list[float]]:
        """Sums by name, and the other 0-dim tensors' values: the one transfer from the device."""
        values = torch.stack([*others, *self.values]).tolist() if others or self.values else []
        sums = dict.fromkeys(self.names, 0.0)
        for name, value in zip(self.names, values[len(others) :], strict=True):
            sums[name] += value
        return sums, values[: len(others)]

    def over(self, ranks: Ranks, sums: dict[str, float], asked: int) -> tuple[dict[str, float], int]:
        """Sums over all ranks, in their order, with the counts that they are to be divided by.

        asked     the status with which a signal asked this rank to stop
        returns   sums, and the largest `asked` of all ranks
        """
        told = ranks.gather((sums, dict(self.counts), asked))
        if len(told) > 1:
            self.counts, sums = Counter(), {}
            for theirs, counts, _ in told:
                self.counts.update(counts)
                for name, value in theirs.items():
                    sums[name] = sums.get(name, 0.0) + value
        return sums, max(status for _, _, status in told)

    def means(self, sums: dict[str, float]) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in sums.items()}
