"""What `fvlm status` says of runs in every state, from the files that a training leaves."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from fvlm import status
from fvlm.errors import UserError
from fvlm.status import status_of, totals_of
from tests.conftest import ROOT, parse
from tests.train_cases import content_in, study_in, trained


def state_of(results: Path, name: str = "baseline", **options) -> status.Status:
    return next(s for s in status_of(study_in(results), **options) if s.run == name)


@pytest.fixture
def begun(tmp_path) -> Path:
    """Results with a run of which three of four steps are logged, each of a second, by a process that is gone."""
    state = tmp_path / "runs/baseline/state"
    state.mkdir(parents=True)
    lines = [
        {"step": i, "samples": 4 * i, "train_loss": 3.0 - i, "samples_per_s": 4.0, "tflops": 0.01} for i in (1, 2, 3)
    ]
    (state / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (state / "lock").write_text(f"process 1 on {socket.gethostname()}")
    (state / "step_00000002.pt").write_bytes(b"")
    return tmp_path


@contextmanager
def held(results: Path):
    with open(results / "runs/baseline/state/lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def older(results: Path, seconds: float) -> None:
    then = time.time() - seconds
    for path in (results / "runs/baseline/state").iterdir():
        os.utime(path, (then, then))


def test_nothing_has_begun_and_what_needs_a_parent_waits(tmp_path):
    assert state_of(tmp_path).state == "not started"
    dpo = state_of(tmp_path, "dpo")
    assert dpo.state == "waiting" and dpo.note == "for stage1"


def test_a_run_that_holds_its_lock_is_running(begun):
    with held(begun):
        found = state_of(begun)
    assert found.state == "running" and (found.step, found.steps, found.loss) == (3, 4, 0.0)
    assert found.samples_per_s == pytest.approx(4) and found.left_s == pytest.approx(1)
    assert found.checkpoint == 2 and found.checkpoint_age_s < 60 and found.hours == pytest.approx(3 / 3600)


def test_a_half_written_line_is_not_read(begun):
    with open(begun / "runs/baseline/state/metrics.jsonl", "a") as file:
        file.write('{"step": 4, "samp')
    with held(begun):
        assert state_of(begun).step == 3


def test_silence_is_stalling_by_the_runs_own_pace(begun):
    with held(begun):
        older(begun, status.QUIET_S - 20)
        assert state_of(begun).state == "running"
        assert state_of(begun, stalled_after=60).state == "stalled"
        older(begun, status.QUIET_S + 20)
        found = state_of(begun)
    assert found.state == "stalled" and "nothing new for 2 min" in found.note


def test_a_slow_run_may_be_silent_for_longer(begun):
    log = begun / "runs/baseline/state/metrics.jsonl"
    log.write_text(log.read_text().replace('"samples_per_s": 4.0', '"samples_per_s": 0.1'))  # 40 s a step
    older(begun, status.QUIET_S + 20)
    with held(begun):
        assert state_of(begun).state == "running"


def test_a_run_whose_process_is_gone_has_failed_and_its_log_says_why(begun):
    assert state_of(begun).state == "failed" and "goes on from the checkpoint" in state_of(begun).note
    log = begun / "logs/train/baseline.log"
    log.parent.mkdir(parents=True)
    log.write_text("baseline step 3\nfvlm train: run 'baseline': the loss is nan at step 4\n")
    assert state_of(begun).state == "failed" and state_of(begun).note == "run 'baseline': the loss is nan at step 4"
    log.write_text("fvlm train: stopped after step 3 of 4, which is saved; the same command goes on from there\n")
    assert state_of(begun).state == "stopped" and state_of(begun).note.startswith("stopped after step 3 of 4")


def test_a_run_elsewhere_is_judged_by_its_files(begun):
    (begun / "runs/baseline/state/lock").write_text("process 1 on node17")
    assert state_of(begun).state == "running" and state_of(begun).note == "on node17"
    older(begun, 1000)
    assert state_of(begun).state == "stalled" and "node17" in state_of(begun).note


def test_asking_does_not_keep_a_training_out(begun):
    assert not status.is_held(begun / "runs/baseline/state/lock")
    with held(begun):
        assert status.is_held(begun / "runs/baseline/state/lock")


def test_a_real_run_that_is_finished(prepared, tmp_path):
    _, _, summary = trained(prepared, tmp_path / "runs")
    found = state_of(tmp_path)
    assert found.state == "finished" and found.step == found.steps == summary["steps"]
    assert found.hours == pytest.approx(summary["wall_s"] / 3600)
    (tmp_path / "runs/baseline/run_summary.json").unlink()  # as if it was killed at its end
    (tmp_path / "runs/baseline/state/lock").write_text(f"process 1 on {socket.gethostname()}")
    found = state_of(tmp_path)
    assert found.state == "failed" and found.step == summary["steps"] and found.left_s == 0


def test_costs_and_totals(begun):
    study = study_in(begun, gpu={"name": "card", "memory_gb": 80, "price_per_hour": 3600.0},
                     baseline={"operation.gpus": 2})  # fmt: skip
    found = status_of(study)
    assert next(s for s in found if s.run == "baseline").cost == pytest.approx(2 * 3)
    total = totals_of(study, found)
    assert total["cost"] == pytest.approx(6) and total["states"]["failed"] == 1 and total["runs"] == len(found)


def study_file(results: Path) -> str:
    path = results / "study.json"
    path.write_text(json.dumps(content_in(results) | {"based_on": str(ROOT / "config/config.yaml")}))
    return str(path)


def test_the_command_as_text_and_as_json(begun, capsys):
    arguments = ["--study", study_file(begun)]
    assert status.main(parse("fvlm.status", arguments)) == 0
    said = capsys.readouterr().out
    assert "baseline        failed" in said and "3/4" in said and "step 2, " in said
    assert status.main(parse("fvlm.status", ["baseline", "--json", *arguments])) == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert row["run"] == "baseline" and row["step"] == 3
    with pytest.raises(UserError, match="no run 'nobody'"):
        status.main(parse("fvlm.status", ["nobody", *arguments]))


def test_it_starts_without_torch():
    code = "import sys, fvlm.status; print([n for n in ('torch', 'pandas', 'transformers') if n in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
