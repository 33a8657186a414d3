"""`fvlm preflight` reports all problems, and which checks are not possible here."""

import fcntl
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fvlm.costs.memory import GB, largest_load, predicted_bytes, unsplit
from fvlm.data.batches.dealing import micro_batches
from fvlm.data.sources import tars_of
from fvlm.errors import UserError
from fvlm.study import check_data as data
from fvlm.study import check_machine as machine
from fvlm.study import check_models as models
from fvlm.study import preflight as command
from fvlm.study.check import NOT_CHECKED, OK, PROBLEM, NotChecked, table_of, tried
from fvlm.study.trial import worst
from fvlm.train.state import load_checkpoint
from tests.config_cases import CONFIG, load
from tests.conftest import parse
from tests.train_cases import study_in, trained


def refuse():
    raise UserError("it is broken; mend it")


def skip():
    raise NotChecked("not here")


def test_a_check_is_ok_a_problem_or_not_checked():
    checks = [tried("one", lambda: "fine"), tried("two", refuse), tried("three", skip)]
    assert [check.state for check in checks] == [OK, PROBLEM, NOT_CHECKED]
    assert "1 ok, 1 problems, 1 not checked" in table_of(checks) and "mend it" in table_of(checks)


def test_all_problems_are_listed_and_all_other_checks_run(tmp_path, capsys):
    study = tmp_path / "study.yaml"
    study.write_text(
        f"based_on: smoke.yaml\nstudy: broken\nresults: {tmp_path}/results\n"
        "sources: {grid: {reader: shards, path: 'nowhere/{00000..00001}.tar'}, chat: {reader: folder, path: nowhere}}\n"
    )
    assert command.main(parse("fvlm.study.preflight", ["--study", str(study)])) == 1
    output = capsys.readouterr().out
    assert "source grid: 2 of 2 shards" in output and "source chat: no folder 'nowhere'" in output
    for name in ("models", "step", "worst batch", "evaluation", "figure", "checkpoint", "file locks"):
        assert f"ok          {name}: " in output, output
    written = (tmp_path / "results/preflight.txt").read_text()
    assert "2 problems" in written and not list((tmp_path / "results").glob(".preflight-*"))


def test_the_scratch_folder_of_a_killed_preflight_is_deleted_and_that_of_a_running_one_is_not(tmp_path):
    for name in ("killed", "running"):
        (tmp_path / f".preflight-{name}").mkdir()
        (tmp_path / f".preflight-{name}/alive").touch()
        (tmp_path / f".preflight-{name}/step_00000001.pt").write_bytes(bytes(1000))
    path = tmp_path / "study.yaml"
    path.write_text(f"based_on: smoke.yaml\nstudy: swept\nresults: {tmp_path}\n")
    with open(tmp_path / ".preflight-running/alive") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        assert command.main(parse("fvlm.study.preflight", ["--study", str(path)])) == 0
    assert [path.name for path in tmp_path.glob(".preflight-*")] == [".preflight-running"]


def test_shards_are_read_and_a_damaged_one_is_named(prepared, tmp_path):
    shutil.copytree(prepared / "shards", tmp_path / "shards")
    study = study_in(tmp_path)
    assert "3 samples" in data.readable(study.sources["grid"], study, tmp_path)
    tar = Path(tars_of(study.sources["grid"], study)[0])
    content = bytearray(tar.read_bytes())
    content[600:700] = bytes(100)
    tar.write_bytes(content)
    with pytest.raises(UserError, match=r"grid/00000\.tar"):
        data.readable(study.sources["grid"], study, tmp_path)


def test_files_are_decoded_as_the_workflow_does(prepared, tmp_path):
    study = study_in(tmp_path)
    shutil.copytree(prepared / "corpus/moves", tmp_path / "corpus/moves")
    assert data.readable(study.sources["moves"], study, tmp_path) == "3 of its first samples decoded"
    shutil.rmtree(tmp_path / "corpus")
    with pytest.raises(NotChecked):
        data.readable(study.sources["moves"], study, tmp_path)


def test_a_disk_that_is_too_small_is_reported(tmp_path, monkeypatch):
    study = load(CONFIG, "paper.yaml", results=str(tmp_path / "results"))
    needed = machine.training_bytes(study) + machine.shard_bytes(study)
    assert needed > 46 * 3 * 4 * 134e6
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(needed) - 1))
    with pytest.raises(UserError, match="free some space"):
        machine.disk(study)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(needed) + 1))
    assert "to be written" in machine.disk(study)


def test_shared_memory_is_checked_only_for_several_gpus():
    with pytest.raises(NotChecked, match="not needed"):
        machine.shared_memory(load(CONFIG, "paper.yaml"))
    several = load(CONFIG, "paper.yaml", baseline={"operation.gpus": 2})
    assert "NCCL" in tried("shared memory", lambda: machine.shared_memory(several)).message


def test_the_size_of_a_checkpoint_is_that_of_a_real_one(prepared, tmp_path):
    trained(prepared, tmp_path)
    study = study_in(prepared)
    state = tmp_path / "baseline/state"
    last = max(state.glob("step_*.pt"))  # of a finished run, without moments
    assert last.stat().st_size == pytest.approx(4 * sum(
        tensor.numel() for tensor in torch.load(last, weights_only=True)["model"].values()
    ), rel=0.2)  # fmt: skip
    assert "the size of baseline's" in models.checkpoint(study.runs["baseline"], tmp_path)
    assert load_checkpoint(tmp_path, "preflight")["step"] == 1
    assert max(tmp_path.glob("step_*.pt")).stat().st_size == pytest.approx(
        machine.checkpoint_bytes(study.runs["baseline"]), rel=0.05
    )


@pytest.mark.parametrize("name", ["config.yaml", "paper.yaml"])
def test_the_worst_batch_is_as_full_as_predicted(name):
    study = load(CONFIG, name)
    for run in study.runs.values():
        samples, most = worst(run, study), largest_load(run)
        assert sum(s.shown for s in samples) == most.positions and sum(s.tokens for s in samples) == most.text_tokens
        (group,) = micro_batches(np.array([s.shown for s in samples]), np.array([s.tokens for s in samples]),
                                 run.operation.micro_frames, run.operation.micro_tokens)  # fmt: skip
        assert len(group) == len(samples)  # in one forward pass


def test_a_run_with_split_weights_is_tried_only_if_one_gpu_can_hold_it():
    study = load(CONFIG, "paper.yaml", baseline={"operation.gpus": 2, "operation.shard_weights": True})
    runs = sorted(map(unsplit, study.runs.values()), key=predicted_bytes)
    run, remark = models.on_one_gpu(runs, study, 32)
    assert predicted_bytes(run) <= 32 * GB and "1.7B-C" in remark
    assert models.on_one_gpu(runs, study, 80) == (runs[-1], "")
    with pytest.raises(NotChecked, match="splits its weights"):
        models.on_one_gpu(runs, study, 2)
    whole = load(CONFIG, "paper.yaml")
    runs = sorted(whole.runs.values(), key=predicted_bytes)
    assert models.on_one_gpu(runs, whole, 2) == (runs[-1], "")  # a run that is not split must fit


@pytest.mark.parametrize(("script", "reason"), [
    ("exec sleep 20", "within 0.2 s"), ("echo 'no controller' >&2; exit 1", "no controller"),
])  # fmt: skip
def test_a_cluster_that_does_not_answer_is_no_problem(script, reason, tmp_path, monkeypatch):
    sinfo = tmp_path / "sinfo"
    sinfo.write_text(f"#!/bin/sh\n{script}\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if "sleep" in script:
        monkeypatch.setattr(machine, "SLURM_S", 0.2)
    check = tried("Slurm", machine.slurm)
    assert check.state == NOT_CHECKED and reason in check.message and "[" not in check.message


def test_on_a_cpu_the_largest_run_whose_batch_takes_up_to_a_minute_is_tried():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    run, remark = models.run_to_try(load(CONFIG, "smoke.yaml"))
    assert remark == "" and run.family == "grid"
    run, remark = models.run_to_try(load(CONFIG, "paper.yaml"))
    assert "1.7B" not in run.name and "was not tried" in remark
