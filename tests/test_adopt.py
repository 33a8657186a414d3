"""`fvlm adopt`: a finished run of the published study becomes a finished run of this project."""

import json
from base64 import urlsafe_b64encode
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file

from fvlm.analysis.collect import collect_curves, collect_runs
from fvlm.config.resolve import study_from_files
from fvlm.config.trained import OF_A_RUN
from fvlm.costs.limits import check_parents
from fvlm.errors import UserError
from fvlm.evaluate.load import load_run
from fvlm.evaluate.losses import evaluate
from fvlm.model.build import build_model
from fvlm.snakemake.study import StudyOfRules
from fvlm.study.adopted_run import adopt
from fvlm.study.check_models import parents
from fvlm.study.status import status_of
from tests import study_cases
from tests.conftest import Workflow, copy_of_workflow, jobs
from tests.model_cases import sample
from tests.train_cases import same, study_in, trained

TINY = ("--configfile", "config/tiny.yaml")
MODELS = {"135M": "smoke-S", "360M": "smoke-M", "1.7B": "smoke-L"}
STUDY = {  # 24 runs of a grid, and nothing else
    "study": "tiny", "based_on": "smoke.yaml", "results": "results",
    "only": {"stages": [], "ablations": []},
    "evaluation": {"families": ["grid"]},
    "seeds": {"baseline": None, "A6": None, "B1": None},
    "scaling": {
        "sizes": {"S": None, "M": None, "L": None} | {
            size: {"model.language": language} for size, language in MODELS.items()
        },
        "budgets": {"C1": 1e9, "C2": 1.2e9, "C3": 1.4e9, "C4": 1.6e9},
        "base": {"optim.lr.connector": 1e-3},
    },
}  # fmt: skip


def random_model(run, seed: int = 7):
    """A model of the run's configuration with random weights."""
    return build_model(run.model, seed, pretrained=False).eval()


def loss_of(model) -> torch.Tensor:
    vocabulary = model.config.language.vocabulary
    batch = sample(5, 20, seed=3, image=224)
    batch = replace(batch, token_ids=batch.token_ids % vocabulary)
    with torch.no_grad():
        return torch.stack([model(batch, mode).loss_sum_B for mode in model.config.modes])


# --- weights ---


@pytest.mark.parametrize("architecture", ["foveated", "multi_token"])
def test_an_adopted_run_computes_exactly_what_the_original_does(tmp_path, architecture):
    study = study_in(tmp_path / "results", baseline={"model.architecture": architecture})
    run = study.runs["baseline"]
    best, last = random_model(run), random_model(run, seed=8)
    adopt(study_cases.finished_run(tmp_path / "there", "baseline", best, last), run, study)
    folder = tmp_path / "results/runs/baseline"
    loaded_run, model, _ = load_run(folder)
    assert loaded_run.digest == run.digest
    assert torch.equal(loss_of(model), loss_of(best)) and not torch.equal(loss_of(model), loss_of(last))
    (folder / "model/final.safetensors").replace(folder / "model/best.safetensors")
    assert torch.equal(loss_of(load_run(folder)[1]), loss_of(last))


@pytest.mark.parametrize("name", ["model.safetensors", "weights/anything.safetensors", "best.pt"])
def test_weights_alone_are_adopted_without_curves(tmp_path, name):
    study = study_in(tmp_path / "results")
    run, place = study.runs["baseline"], tmp_path / "there" / name
    model = random_model(run)
    place.parent.mkdir(parents=True)
    if place.suffix == ".pt":
        study_cases.checkpoint(place, model, 30)
    else:
        model.llm.to(torch.bfloat16).float()  # its weights are stored in half of the bytes
        state = study_cases.theirs(model, compiled=False)
        save_file({key: x.bfloat16() if key.startswith("llm.") else x for key, x in state.items()}, place)
    lines = adopt(place if "weights" in name else place.parent, run, study)
    assert any("no curves" in line for line in lines)
    assert any("stored in bfloat16" in line for line in lines) == (place.suffix != ".pt")
    folder = tmp_path / "results/runs/baseline"
    assert torch.equal(loss_of(load_run(folder)[1]), loss_of(model))
    runs, curves = collect_runs([folder / "run_summary.json"]), collect_curves([folder / "validation.csv"])
    samples = runs["samples"].iloc[0]
    assert len(curves) == 0 and (samples == 960 if place.suffix == ".pt" else pd.isna(samples))
    assert next(s for s in status_of(study) if s.run == "baseline").state == "finished"


# --- records ---


@pytest.fixture
def adopted(tmp_path) -> Path:
    """Results of a study with an adopted baseline."""
    study = study_in(tmp_path / "results")
    run = study.runs["baseline"]
    source = study_cases.finished_run(tmp_path / "there", "baseline", random_model(run), config=study_cases.settings())
    adopt(source, run, study)
    return tmp_path / "results"


def test_metrics_and_summary_are_translated(adopted):
    folder = adopted / "runs/baseline"
    assert all((folder / name).is_file() for name in OF_A_RUN)
    metrics, validation = (pd.read_csv(folder / name) for name in ("metrics.csv", "validation.csv"))
    assert metrics["step"].tolist() == [10, 20, 30, 40] and validation["step"].tolist() == [20, 40]
    assert metrics["samples_per_s"].tolist() == [17.1] * 4 and metrics["loss_coarse"].isna().all()
    assert validation["val_loss"].tolist() == [1.42, 1.43] and validation["attention_entropy"].tolist() == [3.4, 3.4]
    assert validation["train_loss"].tolist() == pytest.approx([1.77, 1.57])  # means of the steps since the last one
    summary = json.loads((folder / "run_summary.json").read_text())
    assert (summary["samples"], summary["steps"], summary["wall_s"]) == (67_000, 40, 3708.0)
    assert summary["best"]["val_loss"] == 1.42 and summary["best"]["step"] == 20
    assert summary["final"]["val_loss"] == 1.43 and summary["git"]["commit"] == "236213d"
    assert summary["flops"] == pytest.approx(validation["flops"].iloc[-1] / (32 * 40) * 67_000)


def test_every_difference_is_listed_and_stored(adopted):
    stored = json.loads((adopted / "runs/baseline/run_summary.json").read_text())["adopted"]
    notes = "\n".join(stored["differences"])
    for fact in (
        "samples: 67,000 there, 16 in the configuration", "optim.lr.connector: 0.001 there, 0.002", "FLOPs: ",
        "optim.batch_size: 32 there, 4", "train.precision: bfloat16 there, float32", "never scores <|im_end|>",
        "data.sources: openvid, text_retention/stage1 there",
    ):  # fmt: skip
        assert fact in notes, fact
    assert "optim.schedule" not in notes and "model." not in notes.replace("model.visual_scale", "")
    assert stored["settings"]["optim.lr.dino"] == 1e-5 and stored["checked"]["on"].startswith("random frames")


def test_a_row_that_cannot_be_read_is_left_out_and_listed(tmp_path):
    study = study_in(tmp_path / "results")
    run = study.runs["baseline"]
    source = study_cases.finished_run(tmp_path / "there", "baseline", random_model(run))
    rows = [row | {"val_loss": "nan"} if row["step"] == 40 else row for row in study_cases.rows("baseline")]
    study_cases.table(next(source.glob("metrics*")), rows)
    lines = adopt(source, run, study)
    assert sum("left out: " in line and "1 of 6 rows; row 7: val_loss is 'nan'" in line for line in lines) == 1
    validation = pd.read_csv(tmp_path / "results/runs/baseline/validation.csv")
    assert validation["step"].tolist() == [20]


def test_an_adopted_run_is_marked(adopted):
    found = next(s for s in status_of(study_in(adopted)) if s.run == "baseline")
    assert found.state == "finished" and found.note.startswith("adopted from ") and found.hours == pytest.approx(1.03)
    runs = collect_runs([adopted / "runs/baseline/run_summary.json"])
    assert runs["origin"].tolist() == ["adopted"] and not any(name.startswith("files") for name in runs)


def linked(prepared: Path, results: Path) -> Path:
    """A results folder with the data of `prepared`, and runs of its own."""
    results.mkdir()
    for name in ("tokenizer", "index", "shards"):
        (results / name).symlink_to(prepared / name)
    return results


def test_an_adopted_run_is_checked_and_evaluated_on_held_out_samples(prepared, tmp_path):
    """Also where the study holds out a share of its own samples, another than that of the run."""
    study = study_in(linked(prepared, tmp_path / "results"), sources={"grid": {"held_out": 0.25}})
    run = study.runs["F1"]
    source = study_cases.finished_run(tmp_path / "there", "F1_freeze_both", random_model(run))
    lines = adopt(source, run, study)
    assert any("held-out samples of grid" in line and "lowest validation loss is 1.4200" in line for line in lines)
    evaluate(tmp_path / "results/runs/F1", study, tmp_path / "F1.csv")
    table = pd.read_csv(tmp_path / "F1.csv")
    assert set(table["mode"]) == {"coarse_only", "coarse_fine", "autoregressive", "blind"}


# --- refused ---


def spoil_pickle(source, run):
    study_cases.checkpoint(source / "step_0000020.pt", random_model(run), 20, config=Path("x"))


def spoil_size(source, run):
    other = study_in(source.parent / "x", baseline={"model.language": "smoke-L"}).runs["baseline"]
    study_cases.checkpoint(source / "step_0000020.pt", random_model(other), 20)


def spoil_architecture(source, run):
    other = study_in(source.parent / "x", baseline={"model.architecture": "multi_token"}).runs["baseline"]
    study_cases.checkpoint(source / "step_0000020.pt", random_model(other), 20)


def spoil_last(source, run):
    other = study_in(source.parent / "x", baseline={"model.language": "smoke-L"}).runs["baseline"]
    study_cases.checkpoint(source / "step_0000040.pt", random_model(other), 40)


def spoil_settings(source, run):
    content = study_cases.settings(deep_query=False)
    study_cases.checkpoint(source / "step_0000020.pt", random_model(run), 20, config=content)


def spoil_numbers(source, run):
    state = study_cases.theirs(random_model(run))
    state["dino_to_llm.bias"][:] = float("nan")
    study_cases.checkpoint(source / "step_0000020.pt", random_model(run), 20, model_state_dict=state)


def spoil_tied(source, run):
    state = study_cases.theirs(random_model(run))
    state["llm.lm_head.weight"] += 1
    study_cases.checkpoint(source / "step_0000020.pt", random_model(run), 20, model_state_dict=state)


def spoil_summary(source, run):
    study_cases.summary(next(source.glob("run_summary*")), "baseline", total_samples=None)


def spoil_columns(source, run):
    study_cases.table(next(source.glob("metrics*")), study_cases.rows("baseline"), ["run_id", "step", "loss"])


def spoil_name(source, run):
    study_cases.summary(source / f"run_summary_135M-C1-B_{study_cases.TIME}.json", "135M-C1-B")
    next(source.glob("run_summary_baseline*")).unlink()
    next(source.glob("metrics_baseline*")).unlink()


def spoil_ablation(source, run):
    study_cases.summary(source / f"run_summary_F1_freeze_both_{study_cases.TIME}.json", "F1_freeze_both")
    next(source.glob("run_summary_baseline*")).unlink()
    next(source.glob("metrics_baseline*")).unlink()


def spoil_folder(source, run):
    study_cases.summary(source / "A6" / f"run_summary_A6_{study_cases.TIME}.json", "A6")


def spoil_whole(source, run):
    path = source / "step_0000020.pt"
    path.write_bytes(path.read_bytes()[:-1000])


REFUSED = {
    spoil_pickle: "a pickle with more in it than tensors and plain values.*pathlib",
    spoil_size: r"of another size: .* has shape \(.*\), expected \(.*smoke-M",
    spoil_architecture: "of another architecture than foveated.*missing: connector.",
    spoil_last: "step_0000040.pt.*of another size",
    spoil_settings: "model.deep_query is False in its own configuration and True in run 'baseline'",
    spoil_numbers: "a loss of nan on random frames",
    spoil_tied: "lm_head.weight differs from the embeddings",
    spoil_summary: "no total_samples",
    spoil_columns: r"metrics_baseline.*no column 'event_type', 'samples_seen', .*found run_id, step, loss",
    spoil_name: "holds run 135M-C1-B, not baseline",
    spoil_ablation: "holds run F1_freeze_both, not baseline; write --run F1",
    spoil_folder: r"several runs \(A6, baseline\)",
    spoil_whole: "cannot be read as a checkpoint",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_what_does_not_belong_is_refused_in_one_sentence_and_nothing_is_left(tmp_path, spoil):
    study = study_in(tmp_path / "results")
    run = study.runs["baseline"]
    source = study_cases.finished_run(tmp_path / "there", "baseline", random_model(run))
    spoil(source, run)
    with pytest.raises(UserError, match=REFUSED[spoil]) as error:
        adopt(source, run, study)
    assert len(str(error.value).splitlines()) == 1
    assert not list((tmp_path / "results").rglob("*.*"))


def test_a_finished_run_is_kept(prepared, tmp_path, capsys):
    results = linked(prepared, tmp_path / "results")
    study = study_in(results)
    run = study.runs["F1"]
    trained(results, results / "runs", "F1")
    before = (results / "runs/F1/model/best.safetensors").read_bytes()
    source = study_cases.finished_run(tmp_path / "there", "F1", random_model(run))
    for _ in range(2):  # the second time nothing would be lost
        adopt(source, run, study)
    (kept,) = (results / "earlier").iterdir()
    assert (kept / "model/best.safetensors").read_bytes() == before and (kept / "metrics.csv").is_file()
    assert capsys.readouterr().err.count(str(kept)) == 1


# --- in a study ---


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Workflow:
    """A study of 24 runs without data; one run is adopted."""
    tiny = copy_of_workflow(tmp_path_factory.mktemp("tiny") / "checkout")
    (tiny.folder / "config/tiny.yaml").write_text(yaml.safe_dump(STUDY))
    run = study_from_files([str(tiny.folder / "config/tiny.yaml")]).runs["135M-C1-F"]
    study_cases.finished_run(tiny.folder / "checkpoints/scaling/135M-C1-F", "135M-C1-F", random_model(run))
    assert tiny.planned(*TINY)["train"] == 24
    done = tiny.fvlm("adopt", "checkpoints/scaling/135M-C1-F", "--run", "135M-C1-F", "--study", "config/tiny.yaml")
    assert done.returncode == 0, done.stderr
    return tiny


@pytest.mark.workflow
def test_snakemake_trains_the_other_23_runs(tiny):
    planned = tiny.planned(*TINY)
    assert planned["train"] == 23 and planned["evaluate"] == 24
    shown = tiny.fvlm("status", "--study", "config/tiny.yaml").stdout
    assert "23 not started, 1 finished" in shown and "adopted from checkpoints/scaling/135M-C1-F" in shown


@pytest.mark.workflow
def test_an_adopted_run_of_another_configuration_is_trained(tiny):
    output = tiny.run("-n", *TINY, "--config", "scaling={base: {optim.lr.connector: 0.002}}")
    assert "135M-C1-F trains again: optim.lr.connector 0.001 -> 0.002" in output and jobs(output)["train"] == 24


@pytest.mark.workflow
@pytest.mark.parametrize("noted", ["finished", "killed"])
def test_a_run_that_was_adopted_after_its_training_is_not_trained_again(tiny, noted):
    place = tiny.folder / ".snakemake" / {"finished": "metadata", "killed": "incomplete"}[noted]
    place.mkdir(exist_ok=True)
    record = {"rule": "train", "input": ["results/index/grid.npz"], "params": ["'x'"], "record_format_version": 6}
    noted_of = [place / urlsafe_b64encode(f"results/runs/135M-C1-F/{name}".encode()).decode() for name in OF_A_RUN]
    for file in noted_of:
        file.write_text(json.dumps(record) if noted == "finished" else "")
    assert tiny.planned(*TINY)["train"] == 23
    for file in noted_of:
        file.unlink()


# --- a run that starts from weights elsewhere ---


def test_a_run_starts_from_weights_that_were_trained_elsewhere(prepared, tmp_path):
    results = linked(prepared, tmp_path / "results")
    trained(results, results / "runs", "stage1")
    _, model, _ = load_run(results / "runs/stage1")
    study_cases.checkpoint(tmp_path / "there/best.pt", model, 6)
    _, from_run, _ = trained(results, results / "runs", "dpo")
    for parent in (tmp_path / "there", tmp_path / "there/best.pt", results / "runs/stage1"):
        changes = {"stages": {"dpo": {"parent": str(parent)}}}
        _, from_path, summary = trained(results, tmp_path / f"{parent.name}-of", "dpo", **changes)
        assert same(from_run, from_path) and summary["parent"] == str(parent)
        inputs = StudyOfRules(study_in(results, **changes), None).training_inputs(SimpleNamespace(run="dpo"))
        assert Path(inputs["parent"]).is_file() and Path(inputs["parent"]).is_relative_to(parent)


def test_a_parent_of_another_size_or_place_is_refused(prepared, tmp_path, monkeypatch):
    results = linked(prepared, tmp_path / "results")
    other = study_in(results, baseline={"model.language": "smoke-L"}).runs["baseline"]
    path = study_cases.checkpoint(tmp_path / "there/latest.pt", random_model(other), 6)
    with pytest.raises(UserError, match=r"latest.pt: the weights are of another size"):
        trained(results, tmp_path / "runs", "dpo", stages={"dpo": {"parent": str(path)}})
    with pytest.raises(UserError, match=r"run 'dpo': parent .*latest.pt: the weights are of another size"):
        parents(study_in(results, stages={"dpo": {"parent": str(path)}}))
    nowhere = study_in(results, stages={"dpo": {"parent": "no/where"}})
    with pytest.raises(UserError, match="run 'dpo': parent: no/where: no such file or folder"):
        check_parents(nowhere)
    monkeypatch.chdir(path.parent)
    with pytest.raises(UserError, match=r"parent .latest\.pt. is no run of this study; .* with a /: \./latest\.pt"):
        study_in(results, stages={"dpo": {"parent": "latest.pt"}})
