"""Trainings of several ranks, each a process that finds all imported and is told who it is as torchrun would."""

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
from tests.train_cases import records

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.rank_cases", "fvlm.train.training"])
PATIENCE = 120.0  # seconds; what takes longer hangs


class Team:
    """`ranks` processes that train a run together. What they say goes to `study.parent`/rank*.log.

    before   called in each of them first, with its rank
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
        """Exit statuses by rank; fails if one hangs."""
        try:
            for process in self.processes:
                process.join(PATIENCE)
                assert process.exitcode is not None, f"hangs\n{self.said}"
        finally:
            for process in self.processes:
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    @property
    def said(self) -> str:
        return "".join(f"--- {log.name}\n{log.read_text()}" for log in self.logs if log.exists())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _train(rank: int, ranks: int, port: int, study: Path, run: str, log: Path, before) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if ranks > 1:
        places = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in places.items()})
    if before is not None:
        before(rank)
    sys.exit(main(["train", run, "--study", str(study)]))


def train(ranks: int, study: Path, run: str = "baseline") -> Path:
    """Train a run to its end; returns its folder."""
    team = Team(ranks, study, run)
    assert team.wait() == [0] * ranks, team.said
    return study.parent / "results/runs" / run


def close(one: Path, other: Path) -> None:
    """What two trainings of the same run have left differs by no more than rounding."""
    for name in ("metrics", "validation"):
        rows, others = (records(folder / f"state/{name}.jsonl") for folder in (one, other))
        assert [row["step"] for row in rows] == [row["step"] for row in others], name
        for row, equal in zip(rows, others, strict=True):
            assert row.keys() == equal.keys()
            for key, value in row.items():
                wanted = value if value is None else pytest.approx(value, rel=1e-3, abs=1e-5)
                assert equal[key] == wanted, (name, row["step"], key)
    for name in ("final", "best"):
        weights, others = (load_file(folder / f"model/{name}.safetensors") for folder in (one, other))
        assert weights.keys() == others.keys()
        for key in weights.keys() - {key for key in weights if key.endswith("k_proj.bias")}:  # their gradient is noise
            value = weights[key]
            assert np.linalg.norm(value - others[key]) <= 1e-3 * np.linalg.norm(value) + 1e-4, key
