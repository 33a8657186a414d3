"""A killed training resumes and ends with the same results; every setting has an effect, and only its own."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from fvlm.__main__ import main
from fvlm.device import cpu_has_bfloat16
from fvlm.train.setup import identity
from fvlm.train.trackers import Trackers
from tests.conftest import ROOT
from tests.rank_cases import Team, signalled, train, with_parent
from tests.train_cases import content_in, records, same, study_file, study_in

STEPS = 16
LONG = {"train.samples": 2 * STEPS, "optim.batch_size": 2, "train.evaluations": 8, "operation.checkpoint_steps": 3}


@pytest.fixture(scope="module")
def parent(prepared, tmp_path_factory):
    return with_parent(prepared, tmp_path_factory.mktemp("parent"))


def outcome(folder: Path) -> tuple:
    """Return the results of a training, without times."""
    summary = json.loads((folder / "run_summary.json").read_text())
    return (
        records(folder / "state/metrics.jsonl"),
        records(folder / "state/validation.jsonl"),
        load_file(folder / "model/final.safetensors"),
        load_file(folder / "model/best.safetensors"),
        {key: summary[key] for key in ("steps", "samples", "flops", "final", "best", "best_by", "last_loss")},
    )


def equal(one: tuple, two: tuple) -> bool:
    return all(same(a, b) if i in (2, 3) else a == b for i, (a, b) in enumerate(zip(one, two, strict=True)))


# --- kills ---


def killed_in_checkpoint(step: int, rank: int) -> None:
    """Kill the process when it has written a checkpoint to its temporary file."""
    replace = os.replace

    def patched(part, path) -> None:
        if Path(path).name == f"step_{step:08d}.pt":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(part, path)

    os.replace = patched


def killed(method: str, step: int) -> Callable[[int], None]:
    return partial(signalled, (method, step), signal.SIGKILL, 0)


def truncate_newest_checkpoint(state: Path) -> None:
    """As a full disk or a lost write would."""
    newest = max(state.glob("step_*.pt"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])


KILLS = {
    "averaged": ("baseline", {"optim.ema": 0.7, "operation.micro_frames": 8},
                 [killed("_update", 7), partial(killed_in_checkpoint, 9)]),
    "question first": ("baseline", {"data.question_first": 0.5, "operation.loader_workers": 2},
                       [killed("_validate", 8), killed("_save", 12)]),
    "preference": ("dpo", {"train.samples": 16}, [killed("_update", 4), partial(killed_in_checkpoint, 6)]),
}  # fmt: skip


@pytest.mark.parametrize("case", KILLS)
def test_a_run_killed_several_times_ends_with_the_same_results(parent, tmp_path, case):
    """Metrics, validations and weights equal those of the undisturbed run bit for bit; each step is logged once."""
    run, changes, kills = KILLS[case]
    calm, disturbed = (study_file(parent, tmp_path / name, run, {**LONG, **changes}) for name in ("calm", "disturbed"))
    folder = tmp_path / "disturbed/results/runs" / run
    for number, kill in enumerate(kills):
        team = Team(1, disturbed, run, kill)
        assert team.wait() == [-signal.SIGKILL], team.output
        for path in (folder / "state").glob("step_*.pt"):
            best = torch.load(path, weights_only=True)["best"]
            assert best is None or (folder / f"state/best_{best['step']:08d}.safetensors").exists(), path.name
        if case == "averaged" and not number:
            truncate_newest_checkpoint(folder / "state")
    results = outcome(train(1, disturbed, run))
    assert [row["step"] for row in results[0]] == list(range(1, len(results[0]) + 1))
    assert equal(results, outcome(train(1, calm, run)))
    assert not list(folder.rglob(".*.part")), "temporary files of the killed processes"


# --- settings ---

SHORT = {
    "data.sources": ["grid", "moves", "pictures", "chat"],
    "optim.batch_size": 4,
    "train.samples": 12,
    "train.evaluations": 1,
    "train.precision": "float32",
    "operation.checkpoint_steps": 100,
    "operation.attention_videos": 0,
}
CONVERGING = {"optim.schedule": "converging", "optim.final_lr": {"connector": 1e-3, "dino": 1e-3, "llm": 1e-3}}
BY_FLOPS = {"train.samples": None, "train.flops": 6e8}
FIELDS = {  # field: (another value, what else is set in both runs)
    "optim.batch_size": (6, {}),
    "optim.lr": ({"connector": 1e-3, "dino": 1e-3, "llm": 2e-3}, {}),
    "optim.final_lr": ({"connector": 1e-3, "dino": 1e-3, "llm": 2e-3}, CONVERGING),
    "optim.schedule": ("constant", {}),
    "optim.warmup": (0.9, {}),
    "optim.weight_decay": (0.5, {}),
    "optim.clip": (0.01, {}),
    "optim.betas": ([0.5, 0.6], {}),
    "optim.ema": (0.5, {}),
    "optim.dpo_beta": (0.5, {}),
    "optim.freeze": (["dino"], {}),
    "data.sources": (["grid", "pictures", "chat"], {}),
    "data.share": ({"video": 0.2, "image": 0.6, "text": 0.2}, {}),
    "data.weights": ({"grid": 1.0, "moves": 1.0}, {}),
    "data.static_frames": (2, {}),
    "data.max_frames": (2, {}),
    "data.max_text_tokens": (20, {}),
    "data.question_first": (1.0, {}),
    "data.loss": ("all", {}),
    "train.samples": (8, {}),
    "train.flops": (4e8, BY_FLOPS),
    "train.seed": (7, {}),
    "train.epoch": (1, {}),
    "train.precision": ("bfloat16", {}),
    "train.evaluations": (3, {}),
    "train.validation_samples": (2, {}),
}


@pytest.fixture(scope="module")
def result_of(parent, tmp_path_factory):
    """Train a run with some settings; return the results. The same settings are trained once."""
    done: dict[str, tuple] = {}

    def result(run: str, settings: dict) -> tuple:
        key = json.dumps([run, settings], sort_keys=True)
        if key not in done:
            folder = tmp_path_factory.mktemp("run")
            study = study_file(parent, folder, run, settings)
            assert main(["train", run, "--study", str(study)]) == 0
            done[key] = outcome(folder / "results/runs" / run)
        return done[key]

    return result


def test_every_field_is_tried():
    from fvlm.config.schema import Data, Optim, Train

    known = {f"{part}.{name}" for part, kind in (("optim", Optim), ("data", Data), ("train", Train))
             for name in kind.model_fields}  # fmt: skip
    assert set(FIELDS) == known


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_changes_the_results(result_of, field, monkeypatch):
    """A setting once had no effect at all."""
    monkeypatch.chdir(ROOT)
    value, others = FIELDS[field]
    if field == "train.precision" and not cpu_has_bfloat16():
        pytest.skip("a CPU without bfloat16 computes such a run in float32")
    run = "dpo" if field == "optim.dpo_beta" else "baseline"
    settings = {**SHORT, **others} if run == "baseline" else {"train.samples": 4}
    one, other = result_of(run, settings), result_of(run, {**settings, field: value})
    assert one[0][-1]["step"] <= 6
    assert not equal(one, other)


def test_settings_of_the_operation_change_no_results(result_of, monkeypatch):
    monkeypatch.chdir(ROOT)
    one = result_of("baseline", {**SHORT, "train.evaluations": 3})
    other = result_of("baseline", {
        **SHORT, "train.evaluations": 3, "operation.checkpoint_steps": 2, "operation.checkpoint_minutes": 1e-5,
        "operation.attention_videos": 2, "operation.loader_workers": 2, "operation.log_seconds": 1e-3,
        "operation.tensorboard": True,
    })  # fmt: skip
    assert equal(one, other)


TOO_FAST = {"optim.lr": {"connector": 1e30, "dino": 1e30, "llm": 1e30}, "optim.warmup": 0.0}
PAIRS = {"train.samples": 4, "optim.batch_size": 2, "train.precision": "float32"}


@pytest.mark.parametrize(("run", "settings", "name"), [
    ("baseline", SHORT, "micro_frames"),
    ("baseline", SHORT, "micro_tokens"),
    ("baseline", SHORT, "threads"),
    ("dpo", PAIRS, "micro_tokens"),
])  # fmt: skip
def test_micro_batches_and_threads_change_results_by_rounding_only(result_of, monkeypatch, run, settings, name):
    monkeypatch.chdir(ROOT)
    one, other = result_of(run, settings), result_of(run, {**settings, f"operation.{name}": 3})
    assert len(one[0]) > 1
    for a, b in zip(one[0] + one[1], other[0] + other[1], strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if key == "reward_accuracy" and not a["step"]:
                continue  # all rewards are zero: rounding decides
            assert a[key] == (b[key] and pytest.approx(b[key], rel=2e-4, abs=1e-4 if "reward" in key else 0)), key


def test_the_average_is_saved_and_does_not_change_the_training(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    plain, averaged = (
        study_file(prepared, tmp_path / str(decay), "baseline", {**SHORT, "optim.ema": decay}) for decay in (None, 0.5)
    )
    folders = [study.parent / "results/runs/baseline" for study in (plain, averaged)]
    for study in (plain, averaged):
        assert main(["train", "baseline", "--study", str(study)]) == 0
    one, other = (outcome(folder) for folder in folders)
    assert one[0] == other[0] and one[1] != other[1]
    saved = torch.load(max((folders[1] / "state").glob("step_*.pt")), weights_only=True)
    for name, own in saved["model"].items():
        assert np.array_equal(one[2][name], own), "the average has changed the training"
        assert np.array_equal(other[2][name], saved["average"]["weights"].get(name, own))
    assert not same(one[2], other[2])


def test_the_identity_depends_on_all_that_the_result_depends_on(tmp_path):
    study, folder = study_in(tmp_path), tmp_path / "runs/dpo"
    run = study.runs["dpo"]
    names = ("tokenizer/tokenizer.json", "index/preferences.npz", "index/preferences_held_out.npz",
             "runs/stage1/model/best.safetensors")  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    found = [identity(run, study, folder), identity(run.model_copy(update={"name": "other"}), study, folder)]
    for name in names:
        (tmp_path / name).write_text("another")
        found.append(identity(run, study, folder))
    assert len(set(found)) == 2 + len(names)
    assert identity(run.model_copy(update={"operation": study.runs["stage1"].operation}), study, folder) == found[-1]


def test_trackers_continue_with_their_training_and_start_anew_with_another(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    opened = []

    class Watched(Trackers):
        def __init__(self, run, study_name, folder, identity, resume_step, ranks):
            opened.append((identity, resume_step))
            super().__init__(run, study_name, folder, identity, resume_step, ranks)

    monkeypatch.setattr("fvlm.train.loop.Trackers", Watched)
    study = study_file(prepared, tmp_path, "baseline", SHORT)
    for anew in (False, False, True):
        if anew:
            shutil.rmtree(tmp_path / "results/runs/baseline/state")
        assert main(["train", "baseline", "--study", str(study)]) == 0
    (first, *begun), (again, *continued), (other, *anew) = opened
    assert first == again != other and {len(first), len(other)} == {32}
    assert (begun, continued, anew) == ([None], [3], [None])


def test_results_of_another_configuration_are_deleted(prepared, tmp_path, monkeypatch):
    """Attention maps of other steps, and the summary by which the run would count as finished."""
    monkeypatch.chdir(ROOT)
    settings = {**SHORT, "operation.attention_videos": 1, "train.evaluations": 3}
    study = study_file(prepared, tmp_path, "baseline", settings)
    folder = tmp_path / "results/runs/baseline"
    assert main(["train", "baseline", "--study", str(study)]) == 0
    assert (folder / "attention/step_00000001.npz").exists()
    changes = {"ablations": {"baseline": {**settings, "train.evaluations": 1, **TOO_FAST}}}
    study.write_text(yaml.safe_dump(content_in(tmp_path / "results", **changes)))
    assert main(["train", "baseline", "--study", str(study)]) == 2
    assert [path.name for path in folder.glob("attention/*")] == ["step_00000000.npz"]
    assert not (folder / "run_summary.json").exists()
