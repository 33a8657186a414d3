"""`fvlm adopt RESULTS.csv`: runs without weights, in a study of pairs of architectures."""

import fcntl
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from fvlm.analysis.collect import collect_curves, collect_runs
from fvlm.config.resolve import study_from_files
from fvlm.config.schema import Gpu
from fvlm.costs.flops import parameters
from fvlm.costs.limits import check_memory
from fvlm.errors import UserError
from fvlm.evaluate.read import read_run
from fvlm.snakemake.study import StudyOfRules
from fvlm.study.adopted_numbers import adopt_numbers
from tests.conftest import Workflow, copy_of_workflow, jobs

PAIRS = ("--configfile", "config/mine.yaml")
STUDY = {  # the 16 runs of config/comprehensive.yaml, with models and data of the smoke study
    "study": "mine", "based_on": "smoke.yaml", "results": "results",
    "only": {"stages": [], "ablations": []},
    "evaluation": {"families": ["pairs"]},
    "seeds": {"baseline": None, "A6": None, "B1": None},
    "scaling": {
        "names": "{size}_{budget}_{letter}",
        "sizes": {
            "S-S": {"model.language": "smoke-S"}, "M-S": {"model.language": "smoke-M"}, "S": None, "M": None, "L": None,
        },
        "budgets": {"C1": None, "C2": None, "2f": {"data.max_frames": 2}, "64f": {"data.max_frames": 64}},
        "architectures": {
            "fov": {"model.architecture": "foveated"},
            "bas": {"model.architecture": "multi_token", "model.tokens_per_frame": 16},
        },
    },
}  # fmt: skip
LEFT = "M-S_64f_bas"  # the one run that the table does not have


@pytest.fixture(scope="module")
def workflow(tmp_path_factory) -> Workflow:
    workflow = copy_of_workflow(tmp_path_factory.mktemp("mine") / "checkout")
    (workflow.folder / "config/mine.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    table_of(workflow).to_csv(workflow.folder / "results.csv", index=False)
    return workflow


def study_of(workflow: Workflow):
    return study_from_files([str(workflow.folder / "config/mine.yaml")])


def table_of(workflow: Workflow) -> pd.DataFrame:
    """Results with the columns of the published study's table, for all runs but one."""
    rows = []
    for place, (name, run) in enumerate(study_of(workflow).runs.items()):
        size, frames, arch = name.split("_")
        rows.append({
            "run": name, "config": size, "frames": frames.removesuffix("f"), "arch": arch,
            "params_M": parameters(run.model)["total"] / 1e6, "visual_tokens_per_frame": run.model.visual_tokens,
            "loss_train": 3 + place / 10, "samples": 48,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    return table[table["run"] != LEFT]


@pytest.mark.workflow
def test_only_the_other_runs_are_trained(workflow):
    assert workflow.planned(*PAIRS)["train"] == 8
    done = workflow.fvlm("adopt", "results.csv", "--study", "config/mine.yaml")
    assert done.returncode == 0, done.stderr
    planned = workflow.planned(*PAIRS)
    assert planned["train"] == 1 and planned["evaluate"] == 1  # without weights there is nothing to evaluate
    status = workflow.fvlm("status", "--study", "config/mine.yaml").stdout
    assert "1 not started, 7 finished" in status
    steps = {line.split()[0]: line.split()[2:4] for line in status.splitlines() if "adopted from" in line}
    assert len(steps) == 7 and all(step == "-" for step, _ in steps.values())
    runs = collect_runs(sorted((workflow.folder / "results/runs").glob("*/run_summary.json"))).set_index("run")
    table = table_of(workflow).set_index("run")
    assert (runs["origin"] == "adopted").all() and runs.loc[table.index, "best.val_loss"].tolist() == [
        pytest.approx(loss) for loss in table["loss_train"]
    ]
    assert (runs["family"] == "pairs").all() and set(runs["budget"]) == {"2f", "64f"}


@pytest.mark.workflow
def test_a_report_has_adopted_runs_beside_the_results_of_jobs(workflow):
    """Snakemake notes the rule and the times of a job, which an adopted run does not have."""
    chosen = ("--config", "only={stages: [], ablations: [], grid: [S-S_2f_fov, S-S_2f_bas]}", "results=results/two")
    done = workflow.fvlm("adopt", "results.csv", "--study", "config/mine.yaml")
    assert done.returncode == 0, done.stderr
    shutil.copytree(workflow.folder / "results/runs", workflow.folder / "results/two/runs")
    table = "results/two/tables/runs.csv"
    for name, target, more in (("after", table, ["--report-after-run"]), ("page", "all", [])):
        output = workflow.run(target, "--report", f"{name}.html", *more, *PAIRS, *chosen)
        assert (workflow.folder / f"{name}.html").stat().st_size > 500_000 and (workflow.folder / table).is_file()
        assert "train" not in jobs(output) if more else "Report created" in output


@pytest.mark.workflow
def test_a_report_is_made_after_finished_results_are_drawn(workflow):
    points = [{"run_id": run, "step": step, "samples_seen": 32 * step, "val_loss": 2 - step / 10}
              for run in ("A1", "A6") for step in (1, 2)]  # fmt: skip
    pd.DataFrame(points).to_csv(workflow.folder / "points.csv", index=False)
    chosen = ("--configfile", "config/smoke.yaml", "--config", "results_from=[points.csv]", "results=results/drawn")
    figure = "results/drawn/imported/figures/training_curves.png"
    output = workflow.run(figure, "--report", "drawn.html", "--report-after-run", *chosen)
    assert jobs(output)["figure"] == 1 and "Adding training_curves.png" in output
    assert (workflow.folder / "drawn.html").stat().st_size > 500_000


def test_the_curves_of_evaluation_points_come_along(workflow, tmp_path):
    points = [{"run_id": "S-S_2f_fov", "step": step, "samples_seen": 4 * step, "val_loss": 3 - step / 100}
              for step in (4, 8, 12)]  # fmt: skip
    pd.DataFrame(points).to_csv(tmp_path / "points.csv", index=False)
    study = study_of(workflow).model_copy(update={"results": str(tmp_path / "results")})
    adopt_numbers(tmp_path / "points.csv", "S-S_2f_fov", study)
    curves = collect_curves([tmp_path / "results/runs/S-S_2f_fov/validation.csv"], 0)
    with pytest.raises(UserError, match="S-S_2f_fov: this run was adopted without its weights"):
        read_run(tmp_path / "results/runs/S-S_2f_fov")
    assert curves["step"].tolist() == [4, 8, 12] and curves["val_loss"].tolist() == [2.96, 2.92, 2.88]


REFUSED = {
    "another architecture": ({"arch": "bas"}, "S-S_2f_fov is multi_token, in the study it is foveated"),
    "another size": ({"params_M": 9.0}, "S-S_2f_fov has 9.0 M parameters, in the study it has"),
    "another name": ({"run": "S-S_9f_fov"}, "found S-S_9f_fov; no run of study 'mine' is among them"),
    "no samples": ({"samples": None}, "samples is empty|no loss or no samples"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_belong_is_refused_and_nothing_is_written(workflow, tmp_path, case):
    change, message = REFUSED[case]
    row = table_of(workflow).iloc[:1].astype(object).assign(**change)
    row.to_csv(tmp_path / "one.csv", index=False)
    study = study_of(workflow).model_copy(update={"results": str(tmp_path / "results")})
    with pytest.raises(UserError, match=message):
        adopt_numbers(tmp_path / "one.csv", None, study)
    assert not (tmp_path / "results").exists()


def test_a_file_without_architectures_is_taken_at_the_names_of_its_runs(workflow, tmp_path):
    study = study_of(workflow).model_copy(update={"results": str(tmp_path / "results")})
    own = {"mine": study.runs["S-S_2f_fov"].model_copy(update={"name": "mine"})}
    study = study.model_copy(update={"runs": study.runs | own})
    rows = [{"run_id": run, "best_val_loss": 3.0, "samples": 48} for run in ("S-S_2f_bas", "S-S_2f_fov", "mine")]
    pd.DataFrame(rows).to_csv(tmp_path / "plain.csv", index=False)
    lines = adopt_numbers(tmp_path / "plain.csv", None, study)
    assert [line.partition(":")[0] for line in lines[:3]] == ["S-S_2f_fov", "S-S_2f_bas", "mine"]
    assert [line for line in lines if "architecture is not recorded" in line] == [
        "  mine: its architecture is not recorded, so taken from the configuration"
    ]


def test_only_a_file_of_the_published_study_has_its_conventions(workflow, tmp_path):
    study = study_of(workflow).model_copy(update={"results": str(tmp_path / "results")})
    table_of(workflow).to_csv(tmp_path / "study.csv", index=False)
    assert any("never scores <|im_end|>" in line for line in adopt_numbers(tmp_path / "study.csv", None, study))
    row = {"run_id": "S-S_2f_fov", "best_val_loss": 3.0, "samples": 48, "arch": "foveated"}
    pd.DataFrame([row]).to_csv(tmp_path / "other.csv", index=False)
    lines = adopt_numbers(tmp_path / "other.csv", None, study)
    assert not any("im_end" in line or "published study" in line for line in lines)
    assert any("does not state on which samples" in line for line in lines)
    row = {"run_id": "S-S_2f_fov", "best_val_loss": 3.0, "total_samples": 48, "status": "success"}
    pd.DataFrame([row]).to_csv(tmp_path / "grid.csv", index=False)
    assert any("never scores <|im_end|>" in line for line in adopt_numbers(tmp_path / "grid.csv", None, study))


def test_a_run_that_is_being_trained_is_refused(workflow, tmp_path):
    table_of(workflow).to_csv(tmp_path / "all.csv", index=False)
    study = study_of(workflow).model_copy(update={"results": str(tmp_path / "results")})
    lock = tmp_path / "results/runs/S-S_2f_bas/state/lock"
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="run 'S-S_2f_bas' is being trained"):
            adopt_numbers(tmp_path / "all.csv", None, study)
    assert not list((tmp_path / "results").rglob("*.csv"))


def test_a_run_is_adopted_where_its_data_are_not(workflow, tmp_path):
    """A run of FLOPs has no number of samples then."""
    table_of(workflow).iloc[:1].to_csv(tmp_path / "one.csv", index=False)
    study = study_of(workflow)
    run = study.runs["S-S_2f_fov"]
    run = run.model_copy(update={"train": run.train.model_copy(update={"samples": None, "flops": 1e9})})
    away = {"reader": "shards", "samples": None, "path": "nowhere/*.tar"}
    study = study.model_copy(update={
        "results": str(tmp_path / "results"), "runs": {run.name: run},
        "sources": {name: source.model_copy(update=away) for name, source in study.sources.items()},
    })  # fmt: skip
    lines = adopt_numbers(tmp_path / "one.csv", None, study)
    assert any("how many the configuration gives is not known without its data" in line for line in lines)


def test_a_stage_without_weights_is_not_trained_for_its_attention_maps(workflow, tmp_path):
    study = study_from_files([str(workflow.folder / "config/smoke.yaml")])
    study = study.model_copy(update={"results": str(tmp_path / "results")})
    (before,) = StudyOfRules(study, None).attention_maps
    name = Path(before).stem
    row = {"run_id": name, "status": "success", "best_val_loss": 3.0, "total_samples": 48}
    pd.DataFrame([row]).to_csv(tmp_path / "stages.csv", index=False)
    adopt_numbers(tmp_path / "stages.csv", name, study)
    rules = StudyOfRules(study, None)
    assert rules.attention_maps == [] and name not in rules.evaluated


def test_a_run_that_the_study_has_trained_stays_unless_it_is_named(workflow, tmp_path, capsys):
    table_of(workflow).iloc[:2].to_csv(tmp_path / "two.csv", index=False)
    study = study_of(workflow).model_copy(update={"results": str(tmp_path / "results")})
    name, other = list(study.runs)[:2]
    summary = tmp_path / "results/runs" / name / "run_summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text(json.dumps({"run": name, "digest": study.runs[name].digest}))
    lines = adopt_numbers(tmp_path / "two.csv", None, study)
    assert f"{name}: this study has trained it, so it stays; --run {name} replaces it" in lines
    assert "adopted" not in json.loads(summary.read_text()) and any(
        line.startswith(f"{other}: adopted") for line in lines
    )
    adopt_numbers(tmp_path / "two.csv", name, study)
    assert "adopted" in json.loads(summary.read_text())
    assert f"{name}: the finished run is kept in " in capsys.readouterr().err


def test_an_adopted_run_needs_no_memory(workflow, tmp_path):
    table_of(workflow).to_csv(tmp_path / "all.csv", index=False)
    small = Gpu(name="toy", memory_gb=2)
    study = study_of(workflow).model_copy(update={"results": str(tmp_path / "results"), "gpu": small})
    runs = {
        name: run.model_copy(update={"operation": run.operation.model_copy(update={"gpus": 1})})
        for name, run in study.runs.items()
    }
    study = study.model_copy(update={"runs": runs})
    with pytest.raises(UserError, match="7 more runs do not fit"):
        check_memory(study)
    adopt_numbers(tmp_path / "all.csv", None, study)
    with pytest.raises(UserError, match=f"run '{LEFT}': training needs up to .* but toy has 2 GB; "):
        check_memory(study)
