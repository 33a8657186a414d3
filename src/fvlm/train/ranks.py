"""The data-parallel ranks: the processes that train one run together, and what they exchange.

A run with one process has no process group, and each method returns what it was given. Objects are exchanged in host
memory (gloo); only gradients travel between devices (gloo on CPUs, NCCL on GPUs).
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from fvlm.errors import Stopped, UserError, first_line
from fvlm.train.launch import launched
from fvlm.train.signals import ended_by_signals

TIMEOUT = timedelta(minutes=30)  # the other ranks wait while the first one writes a checkpoint
BUCKET = 2**25  # numbers that are summed in one exchange: 128 MB


class ReportedElsewhere(UserError):
    """An error that another rank reports to the user. This rank stops without a message."""


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks: rank and count over all nodes, and the local rank on this node."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> "Ranks":
        """Return what torchrun has set; without torchrun, one process, whatever else has set these variables."""
        return cls(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))) if launched() else cls()

    @property
    def first(self) -> bool:
        return self.rank == 0

    @contextmanager
    def joined(self, device: torch.device) -> Iterator["Ranks"]:
        """Join the process group if there is more than one rank, and leave it at the end.

        A process that ends without leaving may be aborted (status 134) by a thread of gloo that is still at work.
        """
        if self.count == 1:
            yield self
            return
        with ended_by_signals(), _connected():  # C++ waits here for the other ranks, and Python handles no signal
            if device.type == "cuda":
                dist.init_process_group("cpu:gloo,cuda:nccl", timeout=TIMEOUT, device_id=device)
            else:
                dist.init_process_group("gloo", timeout=TIMEOUT)
        leave = True
        try:
            yield self
        except Stopped:
            raise
        except BaseException:
            leave = device.type != "cuda"  # NCCL would wait for ranks that may not leave
            raise
        finally:
            if leave:
                dist.destroy_process_group()

    def gather(self, value: object) -> list:
        """Return the values of all ranks, by rank."""
        if self.count == 1:
            return [value]
        values: list = [None] * self.count
        with _connected():
            dist.all_gather_object(values, value)
        return values

    def agree(self, value: object = None, error: UserError | OSError | None = None) -> list:
        """Return the values of all ranks; if any rank has an error, all raise it, so that none waits for another.

        The lowest rank with an error reports it.
        """
        replies = self.gather((value, None if error is None else str(error)))
        for rank, (_, message) in enumerate(replies):
            if message is not None:
                raise error if rank == self.rank and error is not None else ReportedElsewhere(message)
        return [value for value, _ in replies]

    def at_first(self, action: Callable[[], object]) -> Any:
        """Call `action` in the first rank alone; all ranks return its result, or raise its UserError or OSError."""
        result, error = None, None
        if self.first:
            try:
                result = action()
            except (UserError, OSError) as problem:
                error = problem
        return self.agree(result, error)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block in each rank; if it raises UserError or OSError in any rank, all ranks raise."""
        error = None
        try:
            yield
        except (UserError, OSError) as problem:
            error = problem
        self.agree(error=error)

    def common_error(self, message: str) -> UserError:
        """Return the error to raise where all ranks find the same mistake: the first rank reports it."""
        return UserError(message) if self.first else ReportedElsewhere(message)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum each gradient over the ranks. A gradient that no rank has stays None.

        A rank without samples, or without frames, adds zeros.
        """
        if self.count == 1:
            return
        parameters = list(parameters)
        present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        with _connected():
            dist.all_reduce(present, dist.ReduceOp.MAX)
            for bucket in _buckets([p for p, has in zip(parameters, present.tolist(), strict=True) if has]):
                flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
                dist.all_reduce(flat)
                for p, piece in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                    p.grad = piece.view_as(p)


def _buckets(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Yield neighbours of one dtype, at most BUCKET numbers at a time."""
    bucket: list[torch.nn.Parameter] = []
    for p in parameters:
        if bucket and (sum(q.numel() for q in bucket) + p.numel() > BUCKET or p.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(p)
    if bucket:
        yield bucket


@contextmanager
def _connected() -> Iterator[None]:
    """Raise UserError if a connection breaks: a rank that dies closes its connections."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"rank {os.environ.get('RANK')} lost the other ranks of this run ({first_line(error)}): one of them ended "
            "first and reported why if it could; the last checkpoint is intact, and the same command resumes from it"
        ) from error
