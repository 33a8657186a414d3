"""The trackers: real event files, and real offline runs of Weights & Biases."""

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from fvlm.errors import Stopped, UserError
from fvlm.train.trackers import Trackers
from fvlm.train.training import train
from tests.conftest import ROOT
from tests.loader_cases import run_of

IDENTITY = "0123456789abcdef" * 2
TRAIN = {"step": 1, "samples": 4, "train_loss": 2.5, "loss:web": 2.25, "loss_coarse": None, "mfu": None}
VALIDATION = {"step": 1, "samples": 4, "val_loss": 3.5, "loss:web": 3.25, "loss_fine": None}
STARTED = """
import json, os, signal, sys
from pathlib import Path
from fvlm.config.schema import Run
from fvlm.train.trackers import Trackers
given = json.loads(sys.argv[1])
trackers = Trackers(Run.model_validate(given["run"]), "smoke", Path("run"), given["identity"], given["resume"])
for kind, record in given["records"]:
    trackers.log(kind, record)
exec(given["then"])
if given["kill"]:
    os.kill(os.getpid(), signal.SIGKILL)
trackers.close()
"""


def in_process(folder: Path, records, resume=None, kill=False, then="", **changes) -> subprocess.CompletedProcess:
    """Log records in a process of its own, with the home `folder`/home and without a terminal.

    then     code that it runs before it closes the trackers
    changes  of run.operation
    """
    run, _ = run_of(folder, **{f"operation.{name}": value for name, value in changes.items()})
    given = {"run": run.model_dump(mode="json"), "identity": IDENTITY, "resume": resume, "records": records,
             "kill": kill, "then": then}  # fmt: skip
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "HOME": str(home), "TMPDIR": str(home),
                   "WANDB_MODE": "disabled"}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", STARTED, json.dumps(given)],
        cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows: tag -> (step, value)."""
    shown = EventAccumulator(str(folder / "run/tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def records_of(path: Path) -> list:
    """Return the records of a .wandb file: LevelDB's log format, in blocks of 32 KiB after a header of 7 bytes."""
    content, block = path.read_bytes(), 2**15
    at, found, parts = 7, [], b""
    while at + 7 <= len(content):
        if block - at % block < 7:  # no room for another header in this block
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return found


def offline_runs(folder: Path) -> list[dict]:
    """Return each offline run in order of its start: id, project, and history with one dict per step."""
    runs = []
    for path in sorted((folder / "run/wandb").glob("offline-run-*/*.wandb")):
        records = records_of(path)
        (about,) = [record.run for record in records if record.WhichOneof("record_type") == "run"][:1]
        history = [record.history for record in records if record.WhichOneof("record_type") == "history"]
        steps = [
            {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in line.item}
            | {"_step": line.step.num}
            for line in history
        ]
        runs.append({"id": about.run_id, "project": about.project, "name": about.display_name, "steps": steps})
    return runs


def test_nothing_is_imported_or_written_by_default(tmp_path):
    loaded = "print(sorted({'wandb', 'tensorboard'} & set(sys.modules)))"
    done = in_process(tmp_path, [("train", TRAIN)], then=loaded)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    assert [path.name for path in tmp_path.rglob("*")] == ["home"]


# --- TensorBoard ---


def test_event_files_hold_the_numbers(tmp_path):
    done = in_process(tmp_path, [("train", TRAIN), ("validation", VALIDATION)], tensorboard=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert events(tmp_path) == {
        "train/samples": [(1, 4.0)],
        "train/train_loss": [(1, 2.5)],
        "train/loss/web": [(1, 2.25)],
        "validation/samples": [(1, 4.0)],
        "validation/val_loss": [(1, 3.5)],
        "validation/loss/web": [(1, 3.25)],
    }


def test_a_run_that_resumes_after_a_kill_has_each_step_once(tmp_path):
    steps = [("train", {"step": step, "train_loss": 10.0 - step}) for step in range(1, 7)]
    assert in_process(tmp_path, steps[:5], kill=True, tensorboard=True).returncode == -signal.SIGKILL
    assert [step for step, _ in events(tmp_path)["train/train_loss"]] == [1, 2, 3, 4, 5], "a kill loses nothing"
    in_process(tmp_path, [("train", {"step": 3, "train_loss": 99.0}), *steps[3:]], resume=3, tensorboard=True)
    assert events(tmp_path)["train/train_loss"] == [(step, 10.0 - step) for step in range(1, 7)]


def test_a_run_that_starts_over_hides_its_earlier_events(tmp_path):
    in_process(tmp_path, [("train", {"step": step, "train_loss": 1.0}) for step in (1, 2, 3)], tensorboard=True)
    in_process(tmp_path, [("train", {"step": step, "train_loss": 2.0}) for step in (1, 2)], tensorboard=True)
    assert events(tmp_path)["train/train_loss"] == [(1, 2.0), (2, 2.0)]


# --- Weights & Biases ---


def test_an_offline_run_holds_the_numbers_and_leaves_the_home_alone(tmp_path):
    records = [("train", TRAIN), ("validation", VALIDATION), ("train", {**TRAIN, "step": 2, "train_loss": 2.0})]
    done = in_process(tmp_path, records, wandb="offline")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (run,) = offline_runs(tmp_path)
    assert (run["id"], run["project"], run["name"]) == (IDENTITY, "smoke", "baseline")
    one, two = run["steps"]
    assert one["_step"] == 1 and one["train/train_loss"] == 2.5 and one["validation/val_loss"] == 3.5
    assert one["train/loss/web"] == 2.25 and one["validation/loss/web"] == 3.25 and "train/mfu" not in one
    assert two["_step"] == 2 and two["train/train_loss"] == 2.0
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("home", "run")] == []


def test_an_offline_run_that_resumes_keeps_its_id_and_logs_each_step_once(tmp_path):
    steps = [("train", {"step": step, "train_loss": 10.0 - step}) for step in range(1, 7)]
    in_process(tmp_path, steps[:3], wandb="offline")
    in_process(tmp_path, steps, resume=3, wandb="offline")
    first, second = offline_runs(tmp_path)
    assert first["id"] == second["id"]
    assert [step["_step"] for run in (first, second) for step in run["steps"]] == [1, 2, 3, 4, 5, 6]
    assert second["steps"][0]["train/train_loss"] == 6.0


def test_online_without_a_login_stops_before_the_training(tmp_path):
    done = in_process(tmp_path, [], wandb="online")
    assert done.returncode == 1
    assert "UserError" in done.stderr and "No API key configured" in done.stderr
    assert "operation.wandb is 'online'" in done.stderr and "operation.wandb: offline" in done.stderr


# --- errors ---


@pytest.mark.parametrize(("package", "changes"), [
    ("wandb", {"operation.wandb": "offline"}), ("tensorboard", {"operation.tensorboard": True}),
])  # fmt: skip
def test_a_missing_package_stops_before_the_training(tmp_path, monkeypatch, package, changes):
    for name in list(sys.modules):
        if name.split(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # Python's own mark for a module that cannot be imported
    run, study = run_of(tmp_path, **changes)
    with pytest.raises(UserError, match=rf"pip install 'fvlm\[{package}\]'"):
        train(run, study, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_open_is_left_out(tmp_path, capsys):
    run, study = run_of(tmp_path, **{"operation.tensorboard": True})
    (tmp_path / "run").write_text("a file where the folder should be")
    trackers = Trackers(run, study.study, tmp_path / "run", IDENTITY, None)
    trackers.log("train", TRAIN)
    trackers.close()
    output = capsys.readouterr().err
    assert output.count("\n") == 1 and "baseline: TensorBoard failed" in output


def test_a_full_disk_does_not_stop_the_training(tmp_path):
    full = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))  # of any file, so that writing fails as on a full disk
for step in range(2, 20):
    trackers.log("train", {"step": step, "train_loss": 1.0})
print("trained to the end")
"""
    done = in_process(tmp_path, [("train", TRAIN)], then=full, tensorboard=True)
    assert done.returncode == 0 and "trained to the end" in done.stdout
    assert done.stderr.count("baseline: TensorBoard failed") == 1
    assert events(tmp_path)["train/train_loss"][0] == (1, 2.5)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the service by /proc")
def test_a_service_that_dies_does_not_stop_the_training(tmp_path):
    """Weights & Biases writes with a process of its own, which is killed here between two steps."""
    killed = """
import time
listed = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
(service,) = [int(pid) for pids in listed for pid in pids]
assert "wandb-core" in Path(f"/proc/{service}/cmdline").read_text()
os.kill(service, signal.SIGKILL)
time.sleep(0.5)
for step in range(2, 20):
    trackers.log("train", {"step": step, "train_loss": 1.0})
print("trained to the end")
"""
    done = in_process(tmp_path, [("train", TRAIN)], then=killed, wandb="offline")
    assert done.returncode == 0 and "trained to the end" in done.stdout
    assert done.stderr.count("baseline: Weights & Biases failed") == 1


def test_a_signal_while_a_tracker_opens_stops_the_run(tmp_path, monkeypatch):
    def stopped(*_: object) -> None:
        raise Stopped(75, "before its first step")

    monkeypatch.setattr("fvlm.train.trackers._TensorBoard", stopped)
    run, _ = run_of(tmp_path, **{"operation.tensorboard": True})
    with pytest.raises(Stopped):
        Trackers(run, "smoke", tmp_path, IDENTITY, None)
