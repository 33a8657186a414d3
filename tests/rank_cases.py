"""Trainings of several ranks: processes with all imports done, and with the environment that torchrun would set."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fvlm.__main__ import main
from fvlm.train.loop import Trainer
from tests.train_cases import records, study_file

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.rank_cases", "fvlm.train.training"])
TIMEOUT = 120.0  # seconds; a process that takes longer hangs


class Team:
    """`ranks` processes that train a run together. Their output is in `study.parent`/rank*.log.

    before   called in each process first, with its rank
    """

    def __init__(self, ranks: int, study: Path, run: str, before: Callable[[int], None] | None = None):
        port = free_port()
        self.logs = [study.parent / f"rank{rank}.log" for rank in range(ranks)]
        self.processes = [
            CONTEXT.Process(target=_train, args=(rank, ranks, port, study, run, self.logs[rank], before))
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def wait(self) -> list[int]:
        """Return the exit statuses by rank; fails if a process hangs."""
        try:
            for process in self.processes:
                process.join(TIMEOUT)
                assert process.exitcode is not None, f"hangs\n{self.output}"
        finally:
            for process in self.processes:
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    @property
    def output(self) -> str:
        return "".join(f"--- {log.name}\n{log.read_text()}" for log in self.logs if log.exists())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def torchrun_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    others = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "none"}
    return {name: str(value) for name, value in numbers.items()} | others


def _train(rank: int, ranks: int, port: int, study: Path, run: str, log: Path, before) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if ranks > 1:
        os.environ.update(torchrun_environment(rank, ranks, port))
    if before is not None:
        before(rank)
    sys.exit(main(["train", run, "--study", str(study)]))


def train(ranks: int, study: Path, run: str = "baseline") -> Path:
    """Train a run to its end; return its folder."""
    team = Team(ranks, study, run)
    assert team.wait() == [0] * ranks, team.output
    return study.parent / "results/runs" / run


def with_parent(prepared: Path, folder: Path) -> Path:
    """Return a copy of `prepared`, by links, in which stage1 is trained, the parent of the preference run."""
    stage1 = train(1, study_file(prepared, folder / "own", "stage1", {"train.samples": 8}), "stage1")
    results = folder / "prepared"
    (results / "runs").mkdir(parents=True)
    stage1.rename(results / "runs/stage1")
    for name in ("tokenizer", "index", "shards"):
        (results / name).symlink_to(prepared / name)
    return results


def close(one: Path, other: Path) -> None:
    """Check that the results of two trainings of the same run differ by rounding only."""
    for name in ("metrics", "validation"):
        rows, others = (records(folder / f"state/{name}.jsonl") for folder in (one, other))
        assert [row["step"] for row in rows] == [row["step"] for row in others], name
        for row, equal in zip(rows, others, strict=True):
            assert row.keys() == equal.keys()
            for key, value in row.items():
                expected = value if value is None else pytest.approx(value, rel=1e-3, abs=1e-5)
                assert equal[key] == expected, (name, row["step"], key)
    for name in ("final", "best"):
        weights, others = (load_file(folder / f"model/{name}.safetensors") for folder in (one, other))
        assert weights.keys() == others.keys()
        for key in weights.keys() - {key for key in weights if key.endswith("k_proj.bias")}:  # their gradient is noise
            value = weights[key]
            assert np.linalg.norm(value - others[key]) <= 1e-3 * np.linalg.norm(value) + 1e-4, key


def signalled(where: tuple[str, int], number: int, victim: int, rank: int) -> None:
    """Send a signal to rank `victim` when it calls a method of the trainer after a number of steps."""
    method, steps = where
    plain = getattr(Trainer, method)

    def patched(self, *arguments, **options):
        if rank == victim and getattr(self, "step", 0) == steps:  # before __init__ there is no step
            os.kill(os.getpid(), number)
        return plain(self, *arguments, **options)

    setattr(Trainer, method, patched)
