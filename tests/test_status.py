"""`fvlm status`: the state of runs, from the files that a training leaves."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from fvlm.config.changes import changed_fields
from fvlm.errors import UserError
from fvlm.study import status
from fvlm.study.status import status_of, totals_of
from fvlm.train.ranks import Ranks
from fvlm.train.state import RunLock
from tests.conftest import ROOT, parse
from tests.train_cases import content_in, study_in, trained


def state_of(results: Path, name: str = "baseline", stalled_after=None, **changes) -> status.Status:
    return next(s for s in status_of(study_in(results, **changes), stalled_after) if s.run == name)


@pytest.fixture
def begun(tmp_path) -> Path:
    """Results with one run: three of four steps are logged, each of one second, and its process is gone."""
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


def test_a_run_is_not_started_or_waits_for_its_parent(tmp_path):
    assert state_of(tmp_path).state == "not started"
    dpo = state_of(tmp_path, "dpo")
    assert dpo.state == "waiting" and dpo.note == "for stage1"


def test_a_run_that_holds_its_lock_is_running(begun):
    with held(begun):
        found = state_of(begun)
    assert found.state == "running" and (found.step, found.steps, found.loss) == (3, 4, 0.0)
    assert found.samples_per_s == pytest.approx(4) and found.left_s == pytest.approx(1)
    assert found.checkpoint == 2 and found.checkpoint_age_s < 60 and found.hours == pytest.approx(3 / 3600)


def test_a_run_without_output_is_stalled_by_its_own_speed(begun):
    log = begun / "runs/baseline/state/metrics.jsonl"
    with held(begun):
        older(begun, status.QUIET_S - 20)
        assert state_of(begun).state == "running"
        assert state_of(begun, stalled_after=60).state == "stalled"
        older(begun, status.QUIET_S + 20)
        assert state_of(begun).state == "stalled" and "2 min" in state_of(begun).note
        log.write_text(log.read_text().replace('"samples_per_s": 4.0', '"samples_per_s": 0.1'))  # 40 s per step
        older(begun, status.QUIET_S + 20)
        assert state_of(begun).state == "running"


def test_a_run_whose_process_is_gone_has_failed_with_the_error_in_its_log(begun):
    assert state_of(begun).state == "failed" and "checkpoint" in state_of(begun).note
    log = begun / "logs/train/baseline.log"
    log.parent.mkdir(parents=True)
    for state, error in (("failed", "run 'baseline': the loss is nan at step 4"), ("stopped", "stopped after step 3")):
        log.write_text(f"baseline step 3\nfvlm train: {error}\n\n")
        assert (state_of(begun).state, state_of(begun).note) == (state, error)


def test_an_error_of_an_earlier_part_is_not_reported(begun):
    log, lock = begun / "logs/train/baseline.log", begun / "runs/baseline/state/lock"
    log.parent.mkdir(parents=True)
    log.write_text(
        "fvlm train: the loss is nan\n--- 2026-11-29 20:04:31  training of baseline: its newest checkpoint\n"
    )
    assert "its process is gone" in state_of(begun).note
    log.write_text("fvlm train: the loss is nan\n")
    assert state_of(begun).note == "the loss is nan"
    later = log.stat().st_mtime + 1
    os.utime(lock, (later, later))  # started since then, but not by Snakemake
    assert "its process is gone" in state_of(begun).note


def test_a_run_on_another_machine_is_judged_by_the_age_of_its_files(begun):
    (begun / "runs/baseline/state/lock").write_text("process 1 on node17")
    assert state_of(begun).state == "running" and state_of(begun).note == "on node17"
    older(begun, 1000)
    assert state_of(begun).state == "stalled" and "node17" in state_of(begun).note


def configured(results: Path, digest: str) -> None:
    (results / "runs/baseline/state/lock").write_text(f"process 1 on {socket.gethostname()}, configuration {digest}")


def test_files_of_another_configuration_are_not_counted(begun):
    digest, summary = study_in(begun).runs["baseline"].digest, begun / "runs/baseline/run_summary.json"
    configured(begun, digest)
    assert state_of(begun).state == "failed" and state_of(begun).step == 3
    configured(begun, "0" * 16)
    found = state_of(begun)
    assert (found.state, found.step, found.hours) == ("not started", 0, None) and "starts over" in found.note
    with held(begun):
        found = state_of(begun)
        assert (found.state, found.note) == ("running", "out of date: begun with another configuration")
    summary.write_text(json.dumps({"digest": "0" * 16, "wall_s": 60.0, "steps": 4}))
    for holder in ("0" * 16, ""):  # an earlier version wrote none
        configured(begun, holder)
        found = state_of(begun)
        assert (found.state, found.step) == ("not started", 0) and "out of date: finished" in found.note
    configured(begun, digest)  # and then begun anew
    assert state_of(begun).state == "failed"
    (begun / "runs/baseline/state/lock").unlink()  # as of results that were copied without it
    assert "out of date: finished" in state_of(begun).note


def test_the_lock_of_a_real_training_names_machine_and_configuration(tmp_path):
    study = study_in(tmp_path)
    digest = study.runs["baseline"].digest
    with RunLock(tmp_path / "runs/baseline/state", Ranks(), digest):
        found = state_of(tmp_path)
        assert (found.state, found.note, found.step) == ("running", "", 0)
        assert state_of(tmp_path, baseline={"train.samples": 12}).note.startswith("out of date")
    assert state_of(tmp_path).state == "failed"
    assert "starts over" in state_of(tmp_path, baseline={"train.samples": 12}).note


def test_a_summary_of_an_earlier_version_may_lack_fields(begun):
    digest = study_in(begun).runs["baseline"].digest
    (begun / "runs/baseline/run_summary.json").write_text(json.dumps({"digest": digest}))
    found = state_of(begun)
    assert found.state == "finished" and found.step == found.steps == 4 and found.hours is None
    assert "finished" in status.status_text(study_in(begun), [found])


@pytest.mark.parametrize("damage", [
    b"3\n", b"null\n", b'{"step": 4}\n', b'{"step": "x", "samples": 4}\n', b"\xff\xfe\n", b"\0\0\0\n",
    b'{"step": 4, "sa\n',
])  # fmt: skip
def test_a_damaged_or_incomplete_line_is_skipped(begun, damage):
    log = begun / "runs/baseline/state/metrics.jsonl"
    log.write_bytes(damage + log.read_bytes() + damage + b'{"step": 4, "samp')
    found = state_of(begun)
    assert (found.step, found.loss, found.hours) == (3, 0.0, pytest.approx(3 / 3600))


def test_a_damaged_line_in_a_long_log_is_skipped(begun):
    lines = [f'{{"step": {i}, "samples": {4 * i}, "samples_per_s": 4.0}}' for i in range(1, 121)]
    lines[20] = '{"step": 21, "samples": 84, "samples_per_s": 1e'
    (begun / "runs/baseline/state/metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = state_of(begun)
    assert found.step == 120 and found.hours == pytest.approx(120 / 3600)


def test_a_line_without_speed_and_an_odd_checkpoint_are_accepted(begun):
    state = begun / "runs/baseline/state"
    (state / "metrics.jsonl").write_text('{"step": 1, "samples": 4, "samples_per_s": null}\n')
    (state / "step_old.pt").touch()
    found = state_of(begun)
    assert (found.step, found.samples_per_s, found.hours, found.checkpoint) == (1, None, None, 2)


def test_a_lock_that_names_no_machine_is_no_machine_called_none(begun):
    (begun / "runs/baseline/state/lock").write_text("")  # as it is while its next holder writes into it
    with held(begun):
        assert (state_of(begun).state, state_of(begun).note) == ("running", "")
    assert "its lock does not name" in state_of(begun).note


@pytest.mark.parametrize("name", ["run_summary.json", "state/lock", "state/metrics.jsonl"])
def test_a_file_that_cannot_be_read_is_named_and_the_other_runs_are_shown(begun, name):
    path = begun / "runs/baseline" / name
    path.unlink(missing_ok=True)
    path.mkdir()  # unreadable even for root
    found = {s.run: s for s in status_of(study_in(begun))}
    assert found["baseline"].state == "unreadable" and str(path) in found["baseline"].note
    assert found["F1"].state == "not started"


@pytest.mark.parametrize("content", ["[]", '{"digest": '])
def test_a_damaged_summary_is_not_a_finished_run(begun, content):
    (begun / "runs/baseline/run_summary.json").write_text(content)
    assert state_of(begun).state == "unreadable" and "run_summary.json: damaged" in state_of(begun).note


def test_a_long_name_widens_its_column(tmp_path):
    found = [status.Status("a_name_of_more_than_sixteen_letters", "not started"), status.Status("A6", "failed")]
    lines = status.status_text(study_in(tmp_path), found).splitlines()
    assert "letters  not started" in lines[1] and lines[0].index("state") == lines[2].index("failed")


def test_another_status_command_is_no_training(begun):
    lock = begun / "runs/baseline/state/lock"
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not status.is_held(lock)


def test_a_real_run_is_finished_or_out_of_date_with_the_fields_that_differ(prepared, tmp_path, capsys):
    _, _, summary = trained(prepared, tmp_path / "runs")
    finished = state_of(tmp_path)
    assert finished.state == "finished" and finished.step == finished.steps == summary["steps"]
    assert finished.hours == pytest.approx(summary["wall_s"] / 3600)
    changes = {"train.samples": 12, "optim.lr.llm": 3e-5, "operation.threads": 2}
    fields = "out of date: optim.lr.llm 0.002 -> 3e-05, train.samples 16 -> 12"
    assert state_of(tmp_path, baseline=changes).note == fields
    stored = tmp_path / "runs/baseline/state/run.json"
    stored.rename(tmp_path / "run.json")  # of a run that was copied without state/
    assert state_of(tmp_path, baseline=changes).note == fields
    (tmp_path / "run.json").rename(stored)
    (tmp_path / "runs/baseline/run_summary.json").unlink()  # as if killed before the end
    configured(tmp_path, json.loads(stored.read_text())["digest"])
    killed = state_of(tmp_path)
    assert killed.state == "failed" and killed.step == summary["steps"] and killed.left_s == 0
    assert state_of(tmp_path, baseline=changes).note == fields + "; training starts over"
    capsys.readouterr()
    trained(prepared, tmp_path / "runs", baseline=changes)
    assert "baseline: earlier results are " + fields in capsys.readouterr().err
    trained(prepared, tmp_path / "runs", baseline=changes)
    assert "out of date" not in capsys.readouterr().err


def test_a_stored_configuration_that_is_damaged_or_older_is_accepted(tmp_path):
    run = study_in(tmp_path).runs["baseline"]
    stored = tmp_path / "state/run.json"
    stored.parent.mkdir()
    for content in ("", "[]", "{}", '{"digest": 3, "config": null}'):
        stored.write_text(content)
        assert changed_fields(run, tmp_path) == []
    config = run.model_dump(mode="json") | {"removed": True, "sources_digest": "0"}
    del config["train"]["epoch"]
    stored.write_text(json.dumps({"digest": "0", "config": config}))
    assert changed_fields(run, tmp_path, digest="1") == []
    *fields, sources = changed_fields(run, tmp_path)
    assert fields == ["train.epoch not set -> 0", "removed true -> not set"]
    assert "config/sources.yaml" in sources


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
    assert status.main(parse("fvlm.study.status", arguments)) == 0
    table = capsys.readouterr().out
    assert "baseline        failed" in table and "3/4" in table and "step 2, " in table
    assert status.main(parse("fvlm.study.status", ["baseline", "--json", *arguments])) == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert row["run"] == "baseline" and row["step"] == 3
    with pytest.raises(UserError, match="no run 'nobody'"):
        status.main(parse("fvlm.study.status", ["nobody", *arguments]))


def test_watching_ends_when_its_output_is_closed(begun):
    watch = [sys.executable, "-m", "fvlm", "status", "--watch", "0.1", "--study", study_file(begun)]
    with subprocess.Popen(watch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("run ")  # no control characters in a pipe
        process.stdout.close()
        assert process.wait(30) == 128 + signal.SIGPIPE and process.stderr.read() == ""


@pytest.mark.parametrize("option", ["--watch", "--stalled-after"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon"])
def test_seconds_are_above_zero(option, value, capsys):
    with pytest.raises(SystemExit):
        parse("fvlm.study.status", [option, value])
    assert "expected a number of seconds above zero" in capsys.readouterr().err
