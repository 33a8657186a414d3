"""The published study's files of finished runs as results: `results_from` and `fvlm import` read them as they are."""

import re
from functools import partial
from pathlib import Path

import pytest

from fvlm.analysis import finished, imported, study_files
from fvlm.errors import UserError
from tests import study_cases
from tests.analysis_cases import COMPARISONS

read_results, runs_in = (
    partial(function, known=COMPARISONS.ablations) for function in (imported.read_results, finished.runs_in)
)
GRID_ROW = {
    "run_id": "135M-C1-F", "size": "135M", "budget": "C1", "arch": "foveated", "flop_budget": 1.6e16,
    "total_samples": 67_000, "status": "success", "returncode": 0, "wall_time_sec": 3708.0, "final_train_loss": 0.9,
    "best_val_loss": 1.4178, "best_val_step": 2000,
}  # fmt: skip


def one_run(folder: Path, run: str, **changes) -> Path:
    """The folder of a finished run, with its summary and metrics alone."""
    study_cases.summary(folder / run / f"run_summary_{run}_{study_cases.TIME}.json", run, **changes)
    study_cases.table(folder / run / f"metrics_{run}_{study_cases.TIME}.csv", study_cases.rows(run))
    return folder / run


def test_folders_of_runs_become_runs_and_curves(tmp_path):
    for run in ("baseline", "A6_coarse_only", "135M-C1-F", "longvid_fine"):
        one_run(tmp_path / "checkpoints", run)
    study_cases.table(
        tmp_path / "checkpoints/D1_video_heavy/metrics_D1_video_heavy_20260217_000000.csv", study_cases.rows("D1")
    )  # it has no summary: not finished
    tables = read_results([tmp_path / "checkpoints"])
    runs = tables["runs"].set_index("run")
    assert sorted(runs.index) == ["135M-C1-F", "A6", "baseline", "longvid_fine"] == runs_in(tmp_path / "checkpoints")
    assert runs["family"].to_dict() == {
        "135M-C1-F": "grid", "A6": "ablation", "baseline": "ablation", "longvid_fine": "stage"
    }  # fmt: skip
    assert "counted for" in runs.loc["135M-C1-F", "flops_from"]  # N and C, which its files do not have
    assert runs.loc["135M-C1-F", ["size", "budget", "letter"]].tolist() == ["135M", "C1", "F"]
    row = runs.loc["A6"]
    assert (row["samples"], row["best.val_loss"], row["final.val_loss"]) == (67_000, 1.42, 1.43)
    assert row["best.samples"] == 640
    curve = tables["validation_curves"].set_index("run").loc["A6"]
    assert curve["step"].tolist() == [20, 40] and curve["val_loss"].tolist() == [1.42, 1.43]
    assert curve["loss_fine"].tolist() == [1.42, 1.43] and curve["loss_coarse"].isna().all()
    assert curve["attention_entropy"].tolist() == [3.4, 3.4]
    training = tables["training_curves"].set_index("run").loc["A6"]
    assert training["step"].tolist() == [10, 20, 30, 40] and training["train_loss"].iloc[0] == pytest.approx(1.82)


def test_single_files_are_read_alone(tmp_path):
    folder = one_run(tmp_path, "A1_deep_query_off")
    (summary,), (metrics,) = folder.glob("*.json"), folder.glob("*.csv")
    alone = read_results([summary])["runs"].iloc[0]
    assert (alone["run"], alone["best.val_loss"], alone["samples"]) == ("A1", 1.42, 67_000)
    tables = read_results([metrics])
    assert len(tables["validation_curves"]) == 2 and tables["runs"]["samples"].tolist() == [1280]
    renamed = metrics.rename(tmp_path / "renamed.csv")  # the run is in its rows then
    assert runs_in(renamed) == ["A1"] == read_results([renamed])["runs"]["run"].tolist()


def test_a_resumed_run_has_one_curve(tmp_path):
    """It begins a second file with the steps after its last checkpoint, which the first file holds as well."""
    folder = one_run(tmp_path, "LR2")
    later = study_cases.rows("LR2", first=30, last=60, final=1.3, time="20260217_000000")
    study_cases.table(folder / "metrics_LR2_20260217_000000.csv", later)
    study_cases.summary(folder / "run_summary_LR2_20260217_000000.json", "LR2", loss=1.3, samples=90_000)
    tables = read_results([folder])
    assert tables["training_curves"]["step"].tolist() == [10, 20, 30, 40, 50, 60]
    assert tables["validation_curves"]["val_loss"].tolist() == pytest.approx([1.42, 1.3, 1.31])
    assert tables["runs"]["samples"].tolist() == [90_000]


def test_tables_of_results_need_only_one_row(tmp_path):
    path = study_cases.table(tmp_path / "scaling_grid_results.csv", [GRID_ROW], study_cases.GRID)
    row = read_results([path])["runs"].iloc[0]
    assert (row["run"], row["size"], row["samples"], row["best.val_loss"]) == ("135M-C1-F", "135M", 67_000, 1.4178)
    assert (row["family"], row["flops"]) == ("grid", 3.2e16)  # two per multiply-add; N is counted
    assert row["params_total"] == 157_310_976
    with_n = study_cases.table(path, [GRID_ROW | {"total_params": 157.6e6}], [*study_cases.GRID, "total_params"])
    assert read_results([with_n])["runs"][["family", "params_total"]].iloc[0].tolist() == ["grid", 157.6e6]
    rows = [
        GRID_ROW,
        GRID_ROW | {"run_id": "135M-C1-B_20260216_080531", "arch": "multi_token", "best_val_loss": 1.5},
        GRID_ROW | {"run_id": "135M-C1-B_20260218_080531", "arch": "multi_token", "best_val_loss": 1.4},
        GRID_ROW | {"run_id": "1.7B-C1-F", "status": "failed", "best_val_loss": ""},
        {"run_id": "360M-C1-F", "status": "dry_run"},
    ]
    runs = read_results([study_cases.table(path, rows, study_cases.GRID)])["runs"].set_index("run")
    assert runs["best.val_loss"].to_dict() == {"135M-C1-F": 1.4178, "135M-C1-B": 1.4} and runs_in(path) == [
        *sorted(runs.index)
    ]
    assert runs["architecture"].to_dict() == {"135M-C1-F": "foveated", "135M-C1-B": "multi_token"}
    columns = ["run_id", "config", "status", "best_val_loss", "wall_time_sec"]
    row = {"run_id": "A6_coarse_only", "config": "A6.yaml", "status": "complete", "best_val_loss": 1.369}
    ablations = study_cases.table(tmp_path / "ablation_results.csv", [row], columns)
    assert read_results([ablations])["runs"][["run", "family"]].iloc[0].tolist() == ["A6", "ablation"]


def test_a_table_in_a_folder_adds_the_runs_without_files_of_their_own(tmp_path):
    one_run(tmp_path, "135M-C1-F")
    rows = [GRID_ROW, GRID_ROW | {"run_id": "135M-C2-F", "best_val_loss": 1.3}]
    study_cases.table(tmp_path / "scaling_grid_results.csv", rows, study_cases.GRID)
    runs = read_results([tmp_path])["runs"].set_index("run")
    assert runs["best.val_loss"].to_dict() == {"135M-C1-F": 1.42, "135M-C2-F": 1.3}
    with pytest.raises(UserError, match="runs 135M-C1-F are in several"):
        finished.check_finished([tmp_path / "135M-C1-F", tmp_path], COMPARISONS.ablations)


MISTAKES = {
    "no samples": ({"samples": 0}, None, "run_summary_A6.*no total_samples"),
    "samples in words": ({"total_samples": "many"}, None, "total_samples is 'many'"),
    "an unknown event": ({}, {"event_type": "test"}, "row 2: event_type is 'test'; expected train or eval"),
    "no loss": ({}, {"train_loss": ""}, "row 2: train_loss is ''; expected a number"),
    "a loss that is no number": ({}, {"train_loss": "nan"}, "row 2: train_loss is 'nan'; expected a number"),
    "a word": ({}, {"grad_norm": "big"}, "row 2: grad_norm is 'big'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_wrong_costs_the_row_or_the_run_and_is_named(tmp_path, name, capsys):
    summary, row, expected = MISTAKES[name]
    folder = one_run(tmp_path, "A6", **summary)
    rows = study_cases.rows("A6")
    if row:
        study_cases.table(next(folder.glob("metrics*")), [rows[0] | row, *rows[1:]])
        training = read_results([folder])["training_curves"]
        assert training["step"].tolist() == [20, 30, 40]
        assert re.search(rf"^left out: A6: .*metrics_A6.*: 1 of {len(rows)} rows; {expected}", capsys.readouterr().err)
    else:
        one_run(tmp_path, "A7")
        assert read_results([tmp_path])["runs"]["run"].tolist() == ["A7"] and runs_in(tmp_path) == ["A6", "A7"]
        assert re.search(f"^left out: run A6: .*{expected}", capsys.readouterr().err)
        with pytest.raises(UserError, match=expected):  # nothing else is left
            read_results([folder])


@pytest.mark.parametrize("val_loss", ["nan", ""])
def test_an_evaluation_without_a_loss_costs_its_row(tmp_path, capsys, val_loss):
    one_run(tmp_path, "A7")
    rows = study_cases.rows("A6")
    last = next(row for row in reversed(rows) if row["event_type"] == "eval")
    metrics = one_run(tmp_path, "A6") / f"metrics_A6_{study_cases.TIME}.csv"
    study_cases.table(metrics, [row | {"val_loss": val_loss} if row is last else row for row in rows])
    tables = read_results([tmp_path])
    assert sorted(tables["runs"]["run"]) == ["A6", "A7"]
    assert tables["validation_curves"].groupby("run")["step"].apply(list).to_dict() == {"A6": [20], "A7": [20, 40]}
    assert tables["runs"].set_index("run")["final.val_loss"].to_dict() == {"A6": 1.42, "A7": 1.43}
    assert f"val_loss is '{val_loss}'; expected a number" in capsys.readouterr().err


def test_empty_metrics_cost_the_curve_and_a_run_without_a_loss_is_left_out(tmp_path, capsys):
    for run in ("A6", "A7"):
        (one_run(tmp_path, run) / f"metrics_{run}_{study_cases.TIME}.csv").write_text("")
    one_run(tmp_path, "LR2")
    study_cases.summary(next((tmp_path / "A7").glob("run_summary*")), "A7", best_val_loss=float("nan"))
    tables = read_results([tmp_path])
    assert tables["runs"].set_index("run")["best.val_loss"].to_dict() == {"A6": 1.42, "LR2": 1.42}
    assert set(tables["validation_curves"]["run"]) == {"LR2"}
    printed = capsys.readouterr().err.splitlines()
    assert [line.partition(": /")[0] for line in printed] == ["left out: A6", "left out: run A7"]
    assert all("found nothing; expected the metrics of a run" in line for line in printed)


def test_a_row_without_a_loss_costs_a_table_its_run(tmp_path, capsys):
    rows = [GRID_ROW, GRID_ROW | {"run_id": "135M-C2-F", "best_val_loss": "nan"}]
    path = study_cases.table(tmp_path / "scaling_grid_results.csv", rows, study_cases.GRID)
    assert read_results([path])["runs"]["run"].tolist() == ["135M-C1-F"]
    assert "left out: run 135M-C2-F: " in (printed := capsys.readouterr().err) and "best_val_loss is 'nan'" in printed
    with pytest.raises(UserError, match="row 2: best_val_loss is 'nan'"):
        read_results([study_cases.table(path, rows[1:], study_cases.GRID)])


def test_a_last_row_that_a_kill_has_cut_is_left_out(tmp_path):
    folder = one_run(tmp_path, "A6")
    path = next(folder.glob("metrics*"))
    path.write_text(path.read_text()[:-60])
    training, evaluations = study_files.read_metrics(path, left_out := [])
    assert not left_out
    assert [row["step"] for row in training] == [10, 20, 30, 40] and [row["step"] for row in evaluations] == [20]
