"""A training that is told to stop saves and says so by its exit status, and ends as if it had never been stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from fvlm.__main__ import main
from fvlm.train import loop
from fvlm.train.loop import Trainer
from tests.conftest import ROOT
from tests.rank_cases import Team, close, train
from tests.test_train_exact import outcome
from tests.train_cases import change, records, same, study_file

STEPS = 8
SETTINGS = {
    "train.samples": 2 * STEPS, "optim.batch_size": 2, "train.precision": "float32", "train.evaluations": 4,
    "operation.micro_frames": 6, "operation.checkpoint_steps": 100,
}  # fmt: skip
REQUEUE, INTERRUPTED = 75, 130
Where = tuple[str, int]


def told(where: Where, number: int, of: int, rank: int) -> None:
    """In rank `of`: it gets a signal at some place of the training, after so many steps."""
    place, steps = where
    plain = getattr(Trainer, place)

    def and_told(self, *arguments, **options):
        if rank == of and getattr(self, "step", 0) == steps:  # before it is made it has none
            os.kill(os.getpid(), number)
        return plain(self, *arguments, **options)

    setattr(Trainer, place, and_told)


def stopped(study: Path, ranks: int, before: Callable[[int], None], status: int) -> str:
    team = Team(ranks, study, "baseline", before)
    assert team.wait() == [status] * ranks, team.said
    return team.said


def checkpoints(study: Path) -> list[str]:
    return sorted(path.name for path in (study.parent / "results/runs/baseline/state").glob("step_*.pt"))


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory) -> Path:
    return train(1, study_file(prepared, tmp_path_factory.mktemp("whole"), "baseline", SETTINGS))


SIGNALS = {
    "SIGTERM in a step": (signal.SIGTERM, ("_update", 3), REQUEUE, "after step 4 of 8, which is saved"),
    "SIGUSR1 in a validation": (signal.SIGUSR1, ("_validate", 4), REQUEUE, "after step 4 of 8, which is saved"),
    "Ctrl-C in the first validation": (signal.SIGINT, ("_validate", 0), INTERRUPTED, "after step 0 of 8"),
    "SIGTERM in the last validation": (signal.SIGTERM, ("_validate", 8), REQUEUE, "after step 8 of 8"),
    "SIGTERM before it trains": (signal.SIGTERM, ("__init__", 0), REQUEUE, "before its first step"),
}


@pytest.mark.parametrize("case", SIGNALS)
def test_a_stopped_run_ends_as_one_that_was_not_stopped(prepared, undisturbed, tmp_path, case):
    """Bit for bit, with each step and each validation once."""
    number, (place, steps), status, sentence = SIGNALS[case]
    study = study_file(prepared, tmp_path, "baseline", SETTINGS)
    said = stopped(study, 1, partial(told, (place, steps), number, 0), status)
    assert said.count("fvlm train: stopped") == 1 and sentence in said, said
    after = {"_update": steps + 1, "_validate": steps}.get(place)
    assert checkpoints(study)[-1:] == ([] if after is None else [f"step_{after:08d}.pt"])
    again = train(1, study)
    assert all(
        same(one, other) if i in (2, 3) else one == other
        for i, (one, other) in enumerate(zip(outcome(undisturbed), outcome(again), strict=True))
    )


def test_a_validation_that_a_kill_repeats_is_there_once(prepared, undisturbed, tmp_path):
    """Stopped after a step whose validation is due, and killed between that and the checkpoint that knows of it."""
    study = study_file(prepared, tmp_path, "baseline", SETTINGS)
    stopped(study, 1, partial(told, ("_update", 3), signal.SIGTERM, 0), REQUEUE)
    stopped(study, 1, partial(told, ("_save", 4), signal.SIGKILL, 0), -signal.SIGKILL)
    assert [row["step"] for row in records(tmp_path / "results/runs/baseline/state/validation.jsonl")] == [0, 2, 4]
    assert outcome(train(1, study))[1] == outcome(undisturbed)[1]


def hurried(rank: int) -> None:
    """The first rank's clock runs a million times as fast, so that each step takes minutes."""
    if rank == 0:
        loop.time = SimpleNamespace(monotonic=lambda: 1e6 * time.monotonic())


def test_one_clock_says_when_a_checkpoint_is_due(prepared, undisturbed, tmp_path):
    """Ranks that disagree would wait for each other in different places."""
    study = study_file(prepared, tmp_path, "baseline", {**SETTINGS, "operation.checkpoint_minutes": 1})
    team = Team(2, study, "baseline", hurried)
    assert team.wait() == [0, 0], team.said
    again = tmp_path / "results/runs/baseline"
    close(undisturbed, again)
    assert json.loads((again / "run_summary.json").read_text())["checkpoints"]["count"] == 1 + STEPS


def test_a_run_goes_from_two_ranks_to_one_and_to_four(prepared, undisturbed, tmp_path):
    """Stopped by a signal to one of them; weights split over the ranks, whole, and split again."""
    study = study_file(prepared, tmp_path, "baseline", {**SETTINGS, "operation.shard_weights": True})
    said = stopped(study, 2, partial(told, ("_update", 1), signal.SIGTERM, 1), REQUEUE)
    assert said.count("stopped after step 2 of 8") == 1, said
    stopped(study, 1, partial(told, ("_update", 3), signal.SIGUSR1, 0), REQUEUE)
    change(study, "baseline", SETTINGS)
    said = stopped(study, 4, partial(told, ("_validate", 6), signal.SIGINT, 3), INTERRUPTED)
    assert "continuing at step 4 of 8" in said, said
    change(study, "baseline", {**SETTINGS, "operation.shard_weights": True})
    close(undisturbed, train(2, study))


@pytest.mark.parametrize("seed", [0])
def test_any_interruptions_leave_each_step_once(prepared, undisturbed, tmp_path, seed):
    """Signals to one rank or SIGKILL to all, whenever, with 1, 2 or 4 ranks; and now and then a torn checkpoint."""
    chance = random.Random(seed)
    study = study_file(prepared, tmp_path, "baseline", {**SETTINGS, "operation.checkpoint_steps": 2})
    state = tmp_path / "results/runs/baseline/state"
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGKILL):
        ranks = chance.choice((1, 2, 2, 4))
        team = Team(ranks, study, "baseline", slowly)
        wait_for_a_step(state, team)
        time.sleep(chance.random())
        victims = team.processes if number == signal.SIGKILL else [chance.choice(team.processes)]
        for process in victims:
            with suppress(ProcessLookupError):  # it had ended before
                os.kill(process.pid, number)
        lost = {2} if number == signal.SIGKILL else set()  # a rank may notice that another is gone before it is killed
        assert set(team.wait()) <= {0, REQUEUE, -signal.SIGKILL} | lost, team.said
        if chance.random() < 0.5 and len(checkpoints(study)) > 1:
            newest = max(state.glob("step_*.pt"))
            newest.write_bytes(newest.read_bytes()[:1000])
    close(undisturbed, train(2, study))


def slowly(rank: int) -> None:
    plain = Trainer._update

    def update(self, *arguments):
        time.sleep(0.1)
        return plain(self, *arguments)

    Trainer._update = update


def wait_for_a_step(state: Path, team: Team) -> None:
    """Until this start has logged a step of its own, or has nothing left to do."""
    log, before = state / "metrics.jsonl", time.time()
    while any(process.is_alive() for process in team.processes):
        if log.exists() and log.stat().st_mtime > before and log.stat().st_size:
            return
        time.sleep(0.01)


def test_what_a_killed_rank_leaves_behind_does_not_wait(prepared, tmp_path):
    study = study_file(prepared, tmp_path, "baseline", SETTINGS)
    team = Team(2, study, "baseline", partial(told, ("_update", 2), signal.SIGKILL, 1))
    left, killed = team.wait()
    assert killed == -signal.SIGKILL and left == 2 and "lost the other ranks" in team.said, team.said


def test_the_command_starts_its_ranks_and_ends_with_their_status(prepared, undisturbed, tmp_path):
    """By the real command lines, once by its own and once by torchrun's."""
    study = study_file(prepared, tmp_path, "baseline", {**SETTINGS, "operation.ranks": 2})
    environment = {**os.environ, "PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}
    own = ["-m", "fvlm", "train", "baseline", "--study", str(study)]
    options = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, *own], **options)
    log = tmp_path / "results/runs/baseline/state/metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=120)
    assert process.returncode == REQUEUE and said.count("fvlm train: stopped after step") == 1, said
    assert "Traceback" not in said and "torch" not in said, said
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*torchrun, *own], **options, timeout=240)
    assert done.returncode == 0, done.stderr
    close(undisturbed, tmp_path / "results/runs/baseline")


def test_several_nodes_need_slurm(prepared, tmp_path, capsys):
    study = study_file(prepared, tmp_path, "baseline", {**SETTINGS, "operation.nodes": 2})
    assert main(["train", "baseline", "--study", str(study)]) == 2
    assert "operation.nodes is 2" in capsys.readouterr().err
