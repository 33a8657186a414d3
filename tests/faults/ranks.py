"""Faults of a training of two ranks; the end is compared with that of two that nothing disturbed."""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from functools import cache, partial
from pathlib import Path

import torch

from fvlm.train.loop import Trainer
from fvlm.train.objective import TextObjective
from tests.faults.fault import BEFORE_TRAINING, NO_FAULT, SAME, fault, log_elsewhere, small_disk
from tests.faults.tiny import Tiny, error_line
from tests.rank_cases import Team

LOGS = ("rank0.log", "rank1.log")
SOON = 20.0  # seconds, on a busy machine


@cache
def _undisturbed(folder: Path) -> Tiny:
    """The study in a folder trained by two ranks, and how long that takes."""
    world = Tiny(folder)
    tiny = world.copy(folder.with_name("two-ranks"), *BEFORE_TRAINING)
    begin = time.monotonic()
    assert _train(tiny) == [0, 0]
    tiny.seconds["train"] = time.monotonic() - begin
    return tiny


def _start(tiny: Tiny, before=None) -> Team:
    for name in LOGS:
        if (tiny.folder / name).exists():
            os.truncate(tiny.folder / name, 0)
    return Team(2, tiny.folder / "study.yaml", "stage1", before)


def _train(tiny: Tiny, before=None) -> list[int]:
    return _start(tiny, before).wait()


def _end(tiny: Tiny, two: Tiny) -> None:
    """The same command goes on."""
    team = _start(tiny)
    assert team.wait() == [0, 0], team.output
    tiny.check_same(two)


@fault("one of two ranks killed at a random point")
def killed_rank(world: Tiny, folder: Path, draw: random.Random) -> str:
    two, tiny, kills = _undisturbed(world.folder), world.copy(folder, *BEFORE_TRAINING), 0
    for _ in range(draw.randint(1, 2)):
        team, victim = _start(tiny), draw.randrange(2)
        time.sleep(draw.uniform(0, two.seconds["train"]))
        team.processes[victim].kill()
        left = team.processes[1 - victim]
        left.join(2)
        if left.exitcode is None:  # where it waits for the other to join; torchrun does the same
            left.terminate()
        left.join(SOON)
        assert left.exitcode in (0, 2, -signal.SIGTERM), (left.exitcode, team.output)
        if left.exitcode == 2:
            assert "lost the other ranks" in error_line(team.output)
        team.wait()
        kills += team.processes[victim].exitcode == -signal.SIGKILL
        tiny.check_nothing_half_written()
    _end(tiny, two)
    return f"the other ends at once; the same command {SAME}" if kills else NO_FAULT


@fault("two ranks stopped (SIGTERM) at a random point")
def stopped_ranks(world: Tiny, folder: Path, draw: random.Random) -> str:
    two, tiny, stops = _undisturbed(world.folder), world.copy(folder, *BEFORE_TRAINING), 0
    for _ in range(draw.randint(1, 3)):
        team = _start(tiny)
        time.sleep(draw.uniform(0, two.seconds["train"]))
        for process in team.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        statuses = set(team.wait())
        # -SIGTERM: before it listened or had joined; 2: it lost the other, which had stopped before its first step
        assert statuses <= {0, 75, -signal.SIGTERM, 2}, team.output
        assert "Traceback" not in team.output, team.output
        assert ("lost the other ranks" in team.output) == (2 in statuses), team.output
        stops += statuses != {0}
        tiny.check_nothing_half_written()
    _end(tiny, two)
    return f"they stop together; the same command {SAME}" if stops else NO_FAULT


def _spoil(step: int, rank: int) -> None:
    """In the second rank alone: the loss of a step is no number."""
    if rank != 1:
        return
    update, objective = Trainer._update, TextObjective.__call__

    def spoilt(self, batch, validating=False):
        terms = objective(self, batch, validating)
        terms.objective = terms.objective * torch.nan
        terms.sums["objective"] = terms.objective.detach()
        return terms

    def at_step(self, *arguments):
        TextObjective.__call__ = spoilt if self.step + 1 == step else objective
        return update(self, *arguments)

    Trainer._update = at_step


@fault("a loss that is not finite on one of two ranks")
def not_a_number_on_one(world: Tiny, folder: Path, draw: random.Random) -> str:
    two, tiny, step = _undisturbed(world.folder), world.copy(folder, *BEFORE_TRAINING), draw.randint(1, 12)
    team = _start(tiny, partial(_spoil, step))
    assert team.wait() == [2, 2], team.output
    line = error_line(team.output)
    assert "nan" in line and f"step {step}," in line and "samples" in line, line
    logged = (tiny.results / "runs/stage1/state/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == list(range(1, step))
    _end(tiny, two)
    return f"one error message with the step and its samples; neither logged nor saved; after repair, it {SAME}"


@fault("the disk full under two ranks")
def full_disk_of_two(world: Tiny, folder: Path, draw: random.Random) -> str:
    """Somewhere between the first checkpoint and the last file; then there is room again."""
    two = _undisturbed(world.folder)
    with small_disk(folder, 200_000) as mount:
        tiny = world.copy(folder / "study", *BEFORE_TRAINING)
        log_elsewhere(tiny, *LOGS)
        used = shutil.disk_usage(folder).used >> 10
        mount(f"size={used + draw.randrange(3000)}k")
        team = _start(tiny)
        statuses = team.wait()
        assert statuses in ([0, 0], [2, 2]), (statuses, team.output)
        if any(statuses):
            assert "cannot be written" in error_line(team.output)
        tiny.check_nothing_half_written()
        mount("size=200000k")
        _end(tiny, two)
    return f"one error message; once there is room, it {SAME}" if any(statuses) else NO_FAULT
