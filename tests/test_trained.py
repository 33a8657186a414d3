"""Which files in a run's folder pass for a finished run: `fvlm status` and Snakemake agree."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fvlm.config import trained
from fvlm.config.changes import runs_to_train_again
from fvlm.data.shards.arrays import open_arrays, save_arrays
from fvlm.snakemake.memory import ResultsMemory
from fvlm.snakemake.study import StudyOfRules
from fvlm.study.status import status_of
from fvlm.train.signals import StopRequest
from fvlm.train.training import train_here
from tests.train_cases import study_in
from tests.train_cases import trained as train_one


def verdict(results: Path) -> tuple[bool, str]:
    """Whether the baseline is finished, and the note; after a check that Snakemake says the same."""
    study = study_in(results)
    found = next(status for status in status_of(study) if status.run == "baseline")
    memory = ResultsMemory(str(results), {}, lambda: True)
    params = memory.params_of_run(str(results / "runs/baseline/model/best.safetensors"))
    finished = params == [repr(study.runs["baseline"].digest)]
    assert (found.state == "finished") == finished
    again = runs_to_train_again(study)
    assert again == ([] if finished else [f"baseline trains again: {found.note}"])
    return finished, found.note


@pytest.fixture(scope="module")
def finished_run(prepared, tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("finished")
    train_one(prepared, results / "runs")
    return results


@pytest.fixture
def finished(finished_run, tmp_path) -> Path:
    """A copy of the results of one finished run, without the state of its training."""
    shutil.copytree(finished_run, tmp_path / "copy", ignore=shutil.ignore_patterns("state"))
    return tmp_path / "copy"


def edit(results: Path, **fields) -> None:
    path = results / "runs/baseline/run_summary.json"
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def flip(path: Path, place: int) -> None:
    """Change one byte, not the size."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_six_files_made_by_hand_are_no_finished_run(tmp_path):
    run = study_in(tmp_path).runs["baseline"]
    for name in trained.OF_A_RUN:
        (tmp_path / "runs/baseline" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs/baseline" / name).write_text("step,samples,flops\n")
    (tmp_path / "runs/baseline/run_summary.json").write_text(json.dumps({"digest": run.digest, "wall_s": 3.0}))
    assert verdict(tmp_path) == (False, "model/best.safetensors is not the file that belongs to its run_summary.json")


def test_a_copied_run_is_finished_until_one_of_its_files_is_another(finished):
    assert verdict(finished) == (True, "")
    for path in (finished / "runs/baseline").rglob("*"):
        os.utime(path, (1, 1))
    assert verdict(finished) == (True, "")
    for name in trained.OF_A_RUN[1:]:
        path = finished / "runs/baseline" / name
        for place in (0, path.stat().st_size // 2, -1):
            flip(path, place)
            assert verdict(finished) == (False, f"{name} is not the file that belongs to its run_summary.json")
            flip(path, place)
    assert verdict(finished)[0]


def test_a_finished_run_whose_weights_were_replaced_is_kept(finished, capsys):
    folder = finished / "runs/baseline"
    digest = study_in(finished).runs["baseline"].digest
    save_file({"mine": np.zeros(3)}, folder / "model/best.safetensors")
    trained.keep_earlier(folder, digest)
    kept = finished / f"earlier/baseline-{digest}"
    assert (kept / "model/best.safetensors").read_bytes() == (folder / "model/best.safetensors").read_bytes()
    assert str(kept) in capsys.readouterr().err


def test_a_finished_run_is_kept_unless_it_is_made_again_alike(prepared, finished_run, tmp_path, capsys):
    """Its data may have changed, which its configuration does not show."""
    results = tmp_path / "results"
    shutil.copytree(finished_run, results)
    shutil.copytree(prepared / "index", results / "index")
    for name in ("tokenizer", "shards"):
        (results / name).symlink_to(prepared / name)
    study, folder = study_in(results), results / "runs/baseline"
    run, before = study.runs["baseline"], (folder / "model/final.safetensors").read_bytes()
    kept = results / f"earlier/baseline-{run.digest}"
    assert train_here(run, study, folder, StopRequest()) == 0  # from its last checkpoint
    assert not kept.exists() and f"{kept} is deleted" in capsys.readouterr().err and verdict(results)[0]
    with open_arrays(results / "index/grid.npz") as stored:
        rows = len(stored["offset"])
        other_order = {
            name: stored[name][::-1] if stored[name].shape[:1] == (rows,) else stored[name] for name in stored
        }
    save_arrays(results / "index/grid.npz", other_order)
    assert train_here(run, study, folder, StopRequest()) == 0
    assert (folder / "model/final.safetensors").read_bytes() != before
    assert (kept / "model/final.safetensors").read_bytes() == before and (kept / "run_summary.json").is_file()


def test_weights_are_needed_for_the_attention_maps_of_the_last_stage(finished_run, tmp_path):
    shutil.copytree(finished_run / "runs/baseline", tmp_path / "runs/stage1", ignore=shutil.ignore_patterns("state"))
    alone = {"only": {"stages": ["stage1"], "ablations": [], "grid": []}, "evaluation": {"families": ["ablation"]}}
    study = study_in(tmp_path, **alone)
    path = tmp_path / "runs/stage1/run_summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": study.runs["stage1"].digest}))

    def problem(study) -> str:
        (status,) = status_of(study)
        rules = StudyOfRules(study, None)
        assert len(rules.attention_maps) == 1 and rules.evaluated == []
        return status.note

    assert problem(study) == ""
    (tmp_path / "runs/stage1/model/best.safetensors").unlink()
    assert problem(study) == "model/best.safetensors is missing"
    one_frame = study_in(tmp_path, stages={"stage1": {"data.max_frames": 1}}, **alone)
    assert StudyOfRules(one_frame, None).attention_maps == []


def test_a_missing_file_that_the_study_needs_is_reported(finished):
    for name in ("metrics.csv", "model/best.safetensors"):
        path = finished / "runs/baseline" / name
        path.rename(finished / "away")
        (status,) = (status for status in status_of(study_in(finished)) if status.run == "baseline")
        assert (status.state, status.note) == ("not started", f"{name} is missing")
        (finished / "away").rename(path)
    (finished / "runs/baseline/model/final.safetensors").unlink()  # nothing is made of it
    assert verdict(finished)[0]


def test_a_run_of_an_earlier_version_is_finished_if_its_weights_are_whole(finished):
    edit(finished, files=None)
    assert verdict(finished)[0]
    weights = finished / "runs/baseline/model/final.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert verdict(finished) == (False, "model/final.safetensors is not the file that belongs to its run_summary.json")


def test_a_digest_reads_little_of_a_large_file(tmp_path):
    with open(tmp_path / "weights", "wb") as file:
        file.truncate(64 << 30)  # without blocks on the disk; to read all of it takes a minute
    started = time.monotonic()
    assert trained.light_digest(tmp_path / "weights") and time.monotonic() - started < 5
