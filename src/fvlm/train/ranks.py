"""The processes that train one run together: who they are, what they tell each other, and how gradients are added.

A run with one process has no process group, and every method here gives back what it was given. What is told is small
and lies in host memory (gloo); only gradients travel between devices (gloo on CPUs, NCCL on GPUs).
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from fvlm.errors import Stopped, UserError
from fvlm.train.signals import ended_by_signals

PATIENCE = timedelta(minutes=30)  # for one who is late: the first rank alone writes checkpoints
BUCKET = 2**25  # numbers that are added in one go: 128 MB


class ToldElsewhere(UserError):
    """Another rank ends with the sentence that is for the user; this one ends with it, and says nothing."""


@dataclass(frozen=True)
class Ranks:
    """rank and count over all nodes; local: the rank on this node."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> "Ranks":
        """As torchrun sets them; without it one process."""
        return cls(*(int(os.environ.get(name, default)) for name, default in
                     (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))  # fmt: skip

    @property
    def first(self) -> bool:
        return self.rank == 0

    @contextmanager
    def joined(self, device: torch.device) -> Iterator["Ranks"]:
        """The process group, if there is more than one process; left at the end and where all ranks stop together.

        A thread of gloo that is still at work while Python ends may abort the process (status 134).
        """
        if self.count == 1:
            yield self
            return
        with ended_by_signals(), _lost():  # one who waits for a rank that has died hears no other signal
            if device.type == "cuda":
                dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE, device_id=device)
            else:
                dist.init_process_group("gloo", timeout=PATIENCE)
        leave = True
        try:
            yield self
        except Stopped:
            raise
        except BaseException:
            leave = device.type != "cuda"  # NCCL waits for the others, who may not come
            raise
        finally:
            if leave:
                dist.destroy_process_group()

    def gather(self, value: object) -> list:
        """What every rank gives, by rank."""
        if self.count == 1:
            return [value]
        found: list = [None] * self.count
        with _lost():
            dist.all_gather_object(found, value)
        return found

    def agree(self, value: object = None, error: UserError | OSError | None = None) -> list:
        """`gather`, unless any rank has an error: then all raise, so that none waits for another for ever.

        The first of those that have one says it.
        """
        told = self.gather((value, None if error is None else str(error)))
        for rank, (_, said) in enumerate(told):
            if said is not None:
                raise error if rank == self.rank and error is not None else ToldElsewhere(said)
        return [value for value, _ in told]

    def at_first(self, action: Callable[[], object]) -> Any:
        """The result of `action`, which the first rank alone does; if it raises UserError or OSError, all raise."""
        result, error = None, None
        if self.first:
            try:
                result = action()
            except (UserError, OSError) as problem:
                error = problem
        return self.agree(result, error)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Something that each rank does for itself; if it raises UserError or OSError in any, all raise."""
        error = None
        try:
            yield
        except (UserError, OSError) as problem:
            error = problem
        self.agree(error=error)

    def refusal(self, said: str) -> UserError:
        """What to raise where all ranks know of a mistake: the first one says it."""
        return UserError(said) if self.first else ToldElsewhere(said)

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum every gradient over the ranks; one that no rank has stays None.

        A rank without samples, or without frames, adds nothing to what the others have.
        """
        if self.count == 1:
            return
        parameters = list(parameters)
        present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        with _lost():
            dist.all_reduce(present, dist.ReduceOp.MAX)
            for bucket in _buckets([p for p, has in zip(parameters, present.tolist(), strict=True) if has]):
                flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
                dist.all_reduce(flat)
                for p, piece in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                    p.grad = piece.view_as(p)


def told(items: Iterable, ranks: Ranks) -> Iterator:
    """`items`, of which every rank has as many; where one cannot have its next, none goes on to use its own."""
    own, end = iter(items), object()
    while True:
        item, error = None, None
        try:
            item = next(own, end)
        except UserError as problem:
            error = problem
        ranks.agree(error=error)
        if item is end:
            return
        yield item


def _buckets(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Neighbours of one dtype and device, BUCKET numbers at a time."""
    bucket: list[torch.nn.Parameter] = []
    for p in parameters:
        if bucket and (sum(q.numel() for q in bucket) + p.numel() > BUCKET or p.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(p)
    if bucket:
        yield bucket


@contextmanager
def _lost() -> Iterator[None]:
    """A rank that dies takes its connections with it, and the others notice."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"rank {os.environ.get('RANK')} lost the other ranks of this run ({reason}): one of them ended first, "
            "which says why if it could; the last checkpoint is intact, and the same command goes on from there"
        ) from error
