"""A training that a signal stops saves its state; resumed, it ends with the same results."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from fvlm.train import loop
from tests.conftest import ROOT
from tests.rank_cases import Team, close, signalled, train
from tests.test_train_exact import equal, outcome
from tests.train_cases import change, records, study_file

STEPS = 8
SETTINGS = {
    "train.samples": 2 * STEPS, "optim.batch_size": 2, "train.precision": "float32", "train.evaluations": 4,
    "operation.micro_frames": 6, "operation.checkpoint_steps": 100,
}  # fmt: skip
REQUEUE, INTERRUPTED = 75, 130


def stopped(study: Path, ranks: int, before: Callable[[int], None], status: int) -> str:
    team = Team(ranks, study, "baseline", before)
    assert team.wait() == [status] * ranks, team.output
    return team.output


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
def test_a_stopped_run_ends_with_the_same_results(prepared, undisturbed, tmp_path, case):
    """The results are equal bit for bit, with each step and each validation once."""
    number, (method, steps), status, facts = SIGNALS[case]
    study = study_file(prepared, tmp_path, "baseline", SETTINGS)
    output = stopped(study, 1, partial(signalled, (method, steps), number, 0), status)
    assert output.count("fvlm train: stopped") == 1 and facts in output, output
    after = {"_update": steps + 1, "_validate": steps}.get(method)
    assert checkpoints(study)[-1:] == ([] if after is None else [f"step_{after:08d}.pt"])
    assert equal(outcome(undisturbed), outcome(train(1, study)))


def test_a_validation_that_a_kill_repeats_is_logged_once(prepared, undisturbed, tmp_path):
    """The run is stopped before a validation, resumed, and killed after the validation and before its checkpoint."""
    study = study_file(prepared, tmp_path, "baseline", SETTINGS)
    stopped(study, 1, partial(signalled, ("_update", 3), signal.SIGTERM, 0), REQUEUE)
    stopped(study, 1, partial(signalled, ("_save", 4), signal.SIGKILL, 0), -signal.SIGKILL)
    assert [row["step"] for row in records(tmp_path / "results/runs/baseline/state/validation.jsonl")] == [0, 2, 4]
    assert outcome(train(1, study))[1] == outcome(undisturbed)[1]


def hurried(rank: int) -> None:
    """In rank 0, let the clock run a million times as fast, so that each step takes minutes."""
    if rank == 0:
        loop.time = SimpleNamespace(monotonic=lambda: 1e6 * time.monotonic())


def test_the_clock_of_rank_0_decides_when_a_checkpoint_is_due(prepared, undisturbed, tmp_path):
    """Ranks with different decisions would wait for each other forever."""
    study = study_file(prepared, tmp_path, "baseline", {**SETTINGS, "operation.checkpoint_minutes": 1})
    team = Team(2, study, "baseline", hurried)
    assert team.wait() == [0, 0], team.output
    again = tmp_path / "results/runs/baseline"
    close(undisturbed, again)
    assert json.loads((again / "run_summary.json").read_text())["checkpoints"]["count"] == 1 + STEPS


def test_a_run_resumes_with_another_number_of_ranks(prepared, undisturbed, tmp_path):
    """A signal to one rank stops it; the weights are split, whole, and split again."""
    study = study_file(prepared, tmp_path, "baseline", {**SETTINGS, "operation.shard_weights": True})
    output = stopped(study, 2, partial(signalled, ("_update", 1), signal.SIGTERM, 1), REQUEUE)
    assert output.count("stopped after step 2 of 8") == 1, output
    stopped(study, 1, partial(signalled, ("_update", 3), signal.SIGUSR1, 0), REQUEUE)
    change(study, "baseline", SETTINGS)
    output = stopped(study, 4, partial(signalled, ("_validate", 6), signal.SIGINT, 3), INTERRUPTED)
    assert "continuing at step 4 of 8" in output, output
    change(study, "baseline", {**SETTINGS, "operation.shard_weights": True})
    close(undisturbed, train(2, study))


def test_the_command_starts_its_ranks_and_returns_their_status(prepared, undisturbed, tmp_path):
    """With the real command lines: `fvlm train` and torchrun."""
    study = study_file(prepared, tmp_path, "baseline", {**SETTINGS, "operation.ranks": 2})
    environment = {**os.environ, "PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}
    own = ["-m", "fvlm", "train", "baseline", "--study", str(study)]
    options = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, *own], **options)
    log = tmp_path / "results/runs/baseline/state/metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    _, output = process.communicate(timeout=120)
    assert process.returncode == REQUEUE and output.count("fvlm train: stopped after step") == 1, output
    assert "Traceback" not in output and "torch" not in output, output
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*torchrun, *own], **options, timeout=240)
    assert done.returncode == 0, done.stderr
    close(undisturbed, tmp_path / "results/runs/baseline")
