"""Results from elsewhere become the tables that collecting a study makes."""

import json

import numpy as np
import pandas as pd
import pytest

from fvlm.analysis.catalog import COLLECTED
from fvlm.analysis.columns import COLUMNS, COUNTED, GROUP, RUN
from fvlm.analysis.files import read_table, write_table
from fvlm.config.resolve import study_from_files
from fvlm.config.study_file import OWN
from fvlm.costs.amounts import flops_per_sample
from fvlm.errors import UserError
from tests.analysis_cases import SIZES, collect, study_summaries, write_study
from tests.figure_cases import write_tables
from tests.imported_cases import (
    ABLATIONS,
    CHECK,
    POINTS,
    RUNS,
    check_finished,
    drawn,
    evaluations,
    grid,
    pairs,
    place_of,
    read_results,
    reference,
    result,
    save,
    short_names,
    spoken,
)
from tests.test_analysis_fits import REFERENCE


def test_points_become_runs_and_curves(tmp_path):
    path = save(tmp_path / "points.csv", [evaluations(run, loss) for run, loss in ABLATIONS.items()])
    summaries = pd.DataFrame({"run_id": list(ABLATIONS)[:2], "total_params": [157.6e6, 157.7e6]})
    summaries.to_csv(tmp_path / "run_summaries.csv", index=False)
    tables = read_results([path])
    assert list(tables) == list(COLLECTED)
    for name in ("validation_curves", "training_curves", "evaluation", "bootstrap"):
        assert list(tables[name]) == list(COLUMNS[name])
    runs = tables["runs"].set_index("run")
    assert list(tables["runs"]) == [*RUN, COUNTED, GROUP] and (runs[[COUNTED, GROUP]] == "").all(axis=None)
    assert runs.index.tolist() == ["baseline", "A1", "A6", "A7", "F1"] and (runs["family"] == "ablation").all()
    row = runs.loc["A1"]
    assert (row["final.val_loss"], row["best.val_loss"]) == pytest.approx((1.35, 1.34))
    assert (row["samples"], row["best.samples"]) == pytest.approx((294_400, 294_400 * 11 / 12))
    assert runs["params_total"].tolist()[:2] == [157.6e6, 157.7e6] and runs["params_total"][2:].isna().all()
    assert runs["flops"].isna().all() and runs["text_tokens"].isna().all()
    curve = tables["validation_curves"]
    assert len(curve) == 60 and (curve["attention_entropy"] == 3.4).all() and curve["loss_fine"].isna().all()
    assert tables["training_curves"]["train_loss"].to_numpy() == pytest.approx(curve["val_loss"] - 0.1)
    assert tables["evaluation"].empty and tables["bootstrap"].empty
    write_tables(tmp_path / "tables", tables)
    assert [len(read_table(tmp_path / "tables", name)) for name in tables] == [len(table) for table in tables.values()]


def test_flops_that_no_file_has_are_counted_and_named(tmp_path):
    frames = [frame.drop(columns="total_flops") for frame in grid()]
    tables = read_results([save(tmp_path / "points.csv", [frames[0].drop(columns="total_params"), *frames[1:]])])
    runs = tables["runs"].set_index("run")
    assert (runs["family"] == "grid").all() and runs.loc["135M-C1-F", "params_total"] == SIZES["135M"][0]
    study = study_from_files([str(OWN / "paper.yaml")])
    for name in ("135M-C1-F", "360M-C2-B"):
        each = flops_per_sample(study.runs[name], study)
        assert runs.loc[name, "flops"] == pytest.approx(each * runs.loc[name, "samples"])
        assert f"{each:.3g} a sample" in runs.loc[name, COUNTED] and "full-size study" in runs.loc[name, COUNTED]
    curve, each = tables["validation_curves"].set_index("run").loc["135M-C1-F"], runs["flops"] / runs["samples"]
    assert (curve["flops"] / curve["samples"]).to_numpy() == pytest.approx(each["135M-C1-F"])
    drawn(tables, tmp_path, ("loss_vs_flops",))
    text = (tmp_path / "figures" / "loss_vs_flops.rst").read_text()
    assert "FLOPs: 3.77e+11 a sample of 135M" in text and "comparing-with-the-study.md" in text
    unknown = [frame.replace({"run_id": {"135M-C1-F": "9M-C1-F"}}) for frame in frames[:1]]
    nothing = read_results([save(tmp_path / "unknown.csv", unknown)])["runs"].iloc[0]
    assert nothing["family"] == "stage" and np.isnan(nothing["flops"]) and nothing["size"] == "9M"


def test_flops_of_a_file_are_in_one_convention(tmp_path):
    reported = save(tmp_path / "reported.csv", [pairs(total_flops_reported=3e15)])
    given = save(tmp_path / "given.csv", [pairs(total_flops=3e15).replace("_", "-", regex=True)])
    tables = read_results([reported, given])
    runs = tables["runs"]
    assert runs["flops"].tolist() == pytest.approx([2e15] * 8 + [3e15] * 8)
    assert runs[COUNTED].str.contains("x 2/3").tolist() == [True] * 8 + [False] * 8
    groups = {f"{name}, {n} frames" for name in ("reported", "given") for n in (8, 64)}
    assert set(runs[GROUP]) == groups
    shown = drawn(tables, tmp_path, ("loss_vs_flops",))["loss_vs_flops"].query("what == 'run'")  # each by itself
    assert shown.groupby("group")["loss"].nunique().to_dict() == dict.fromkeys(groups, 4)


def test_points_that_name_a_model_in_place_of_a_run(tmp_path):
    rows = [
        {"config": config, "arch": arch, "step": step, "loss": loss + 5 / step, "pflops": 0.01 * step}
        for config, loss in (("S-S", 4.0), ("M-S", 3.8)) for arch in ("fov", "bas") for step in (100, 300, 1000, 3000)
    ]  # fmt: skip
    path = save(tmp_path / "points.csv", [pd.DataFrame(rows)])
    check_finished([path])
    tables = read_results([path, save(tmp_path / "runs.csv", [pairs(config="S-S")[:1], pairs(config="S-S")[2:3]])])
    runs = tables["runs"].set_index("run")
    assert runs.loc["M-S_bas", ["family", "architecture", "size"]].tolist() == ["pairs", "multi_token", "M-S"]
    assert runs.loc["S-S_fov", "flops"] == pytest.approx(6e16) and runs.loc["S-S_fov", "params_total"] == 159e6
    assert np.isnan(runs.loc["M-S_fov", "params_total"]) and runs["samples"].isna().sum() == 4
    found = drawn(tables, tmp_path, ("loss_vs_flops", "gap", "gap_arrows"))
    assert (found["loss_vs_flops"]["what"] == "run").sum() == 4
    gaps = found["gap"].set_index("budget").loc["points"]
    assert gaps["raw_percent"].tolist() == pytest.approx([0.0, 0.0])
    assert gaps["note"].tolist() == ["N is not known: no curve to correct with"] * 2
    assert len(found["gap_arrows"]) == 2  # of the pairs whose N is known


def test_runs_that_began_at_a_time_have_plain_names():
    ids = ["135M-C1-F_20260216_080531", "A6_coarse_only_20260216_080531", "x_20260101_000000", "x_20260102_000000"]
    assert list(short_names(ids).values()) == ["135M-C1-F", "A6", *ids[2:]]


def test_a_size_is_that_of_the_runs_with_the_same_name_of_it(tmp_path):
    frames = [
        evaluations("baseline", model_size="135M", total_params=157.6e6),
        evaluations("LR2", model_size="135M", total_params=np.nan),
        evaluations("large", model_size="360M", total_params=np.nan),
        evaluations("known", model_size="", total_params=1e8),
        evaluations("unknown", model_size="", total_params=np.nan),
    ]
    runs = read_results([save(tmp_path / "points.csv", frames)])["runs"]
    assert runs["params_total"].fillna(0).tolist() == [157.6e6, 157.6e6, 0, 1e8, 0]


def test_names_imply_what_a_run_is():
    ids = ["A8_static_1frame", "A8_static_4frames", "A8_static_4frames-s43", "LR2", "A6_coarse-s43", "A6_coarse", "x"]
    expected = [*ids[:3], "LR2", "A6-s43", "A6", "x"]
    assert list(short_names(ids).values()) == expected
    grid_run = place_of("1.7B-C4-B-s43")
    assert (grid_run["family"], grid_run["size"], grid_run["budget"], grid_run["seed"]) == ("grid", "1.7B", "C4", 43)
    assert grid_run["architecture"] == "multi_token" and place_of("B0")["architecture"] == "blind"
    assert place_of("longvid_fine")["family"] == "stage"
    stated = {
        "S-S_8f_bas-s43": "multi_token", "S-S_fov_20260101_000000": "foveated", "small_8f_bas": "multi_token",
        "my-multi_token": "multi_token", "360M-new-F": "foveated", "foveated_8f_recon": "foveated",
        "longvid_fine": "", "Z9_new": "", "basic": "", "F1": "foveated", "baseline": "foveated",
    }  # fmt: skip
    assert {name: place_of(name)["architecture"] for name in stated} == stated
    assert place_of("S-S_8f_bas-s43")["seed"] == 43


def test_runs_of_an_unknown_architecture_are_shown(tmp_path):
    frames = [evaluations(run) for run in ("mine", "Z9_new", "baseline")]
    tables = read_results([save(tmp_path / "points.csv", frames)])
    assert tables["runs"]["architecture"].tolist() == ["", "", "foveated"]
    assert tables["runs"]["visual_tokens"].isna().tolist() == [True, True, False]
    shown = drawn(tables, tmp_path, ("training_curves",))["training_curves"]
    assert set(shown["run"]) == {"mine", "Z9", "baseline"}


def test_a_table_with_an_early_and_a_final_loss_of_each_run(tmp_path):
    columns = "run,arch,frames,final_step,loss_early,early_step,loss_final\n"
    path = tmp_path / "comparison.csv"
    path.write_text(columns + "baseline_8f,bas,8,50,5.48,25,5.05\nfoveated_8f_recon,fov,8,50,5.92,25,5.7\n")
    check_finished([path])
    tables = read_results([path])
    runs = tables["runs"].set_index("run")
    assert runs["architecture"].tolist() == ["multi_token", "foveated"] and runs["final.val_loss"].tolist() == [
        5.05,
        5.7,
    ]
    assert (runs["family"] == "stage").all()  # baseline_8f is not the study's ablation `baseline`, which is foveated
    assert tables["validation_curves"][["step", "val_loss"]].to_numpy().tolist() == [
        [25, 5.48], [50, 5.05], [25, 5.92], [50, 5.7]
    ]  # fmt: skip


OF_REFERENCE = {  # runs, evaluation points
    "derived/comprehensive_scaling.csv": (10, 0), "derived/earlier_scaling_points.csv": (4, 16),
    "derived/full_comparison_v2.csv": (6, 12), "derived/runs_table.csv": (25, 0),
    "derived/legacy_ablation_2026-01-06.csv": "ratios of losses, and no losses of runs",
    "release_scaling_data/all_eval_points.csv": (25, 1002), "release_scaling_data/run_summaries.csv": (24, 0),
    "release_scaling_data/scaling_fits.json": "coefficients of fits .*, and no results of runs",
    "scaling_64frames/scaling_64frames.json": (2, 4),
    "scaling_laws/scaling_laws.json": "coefficients of fits .*, and no results of runs",
}  # fmt: skip


@reference
def test_each_file_of_the_published_study_is_read_or_refused_for_what_it_is():
    files = {str(path.relative_to(REFERENCE)) for path in REFERENCE.glob("*/*")}
    assert files == set(OF_REFERENCE)
    for name, expected in OF_REFERENCE.items():
        if isinstance(expected, str):
            with pytest.raises(UserError, match=expected):
                check_finished([REFERENCE / name])
            continue
        check_finished([REFERENCE / name])
        tables = read_results([REFERENCE / name])
        assert (len(tables["runs"]), len(tables["validation_curves"])) == expected
        assert tables["runs"]["best.val_loss"].notna().all(), name


def test_a_list_of_results_becomes_runs(tmp_path):
    path = tmp_path / "results.json"
    many = {"visual_tokens": 1024, "model_type": "baseline"}
    found = [result(step=300, loss=4.1), result(), result(**many), result(step=300, loss=4.0, params=4e8, **many)]
    path.write_text(json.dumps(found))
    tables = read_results([path])
    runs = tables["runs"].set_index("run")
    assert runs["architecture"].to_dict() == {"64-frame-foveated": "foveated", "64-frame-baseline": "multi_token"}
    assert runs["visual_tokens"].tolist() == [1, 16] and runs["samples"].tolist() == [4800, 4800]
    assert runs["final.val_loss"].tolist() == [4.1, 4.0] and runs["flops"].tolist() == [4.8e15, 4.8e15]
    assert tables["validation_curves"]["step"].tolist() == [100, 300, 100, 300] and tables["training_curves"].empty
    found = drawn(tables, tmp_path, ("training_curves", "gap", "loss_vs_flops"))
    assert len(found["training_curves"]) == 4 and (found["loss_vs_flops"]["what"] == "run").sum() == 2
    assert found["gap"]["raw_percent"].tolist() == pytest.approx([100 * (4.1 / 4.0 - 1)])
    assert found["gap"]["budget"].tolist() == ["64 frames"]


def test_a_folder_of_runs_gives_what_collecting_gives(tmp_path):
    runs = [one for one in study_summaries() if one["run"] in ("stage3", "baseline", "A6", "135M-C1-F", "135M-C1-B")]
    write_study(tmp_path, runs)
    collect(tmp_path, sorted(runs, key=lambda one: one["run"]))
    for name, table in read_results([tmp_path]).items():
        write_table(table, tmp_path / "mine" / f"{name}.csv")
        one, two = read_table(tmp_path / "mine", name), read_table(tmp_path / "tables", name)
        if name == "bootstrap":  # the other was made with fewer resamples
            one, two = one[list(COLUMNS[name])], two[list(COLUMNS[name])]
        columns = ["standard_error", "low", "high"] if name == "evaluation" else []
        pd.testing.assert_frame_equal(one.drop(columns=columns), two.drop(columns=columns), check_like=True)


def test_results_of_several_kinds_stand_together(tmp_path):
    runs = [one for one in study_summaries() if one["run"] in ("stage1", "stage2")]
    write_study(tmp_path / "study", runs)
    path = save(tmp_path / "points.csv", [evaluations("baseline"), evaluations("A6", 1.4)])
    tables = read_results([tmp_path / "study", path])
    assert tables["runs"]["run"].tolist() == ["stage1", "stage2", "baseline", "A6"]
    assert tables["runs"]["config.data.loss"].isna().tolist() == [False, False, True, True]
    assert set(tables["evaluation"]["run"]) == {"stage1", "stage2"}
    assert len(drawn(tables, tmp_path, ("training_curves",))["training_curves"]) == 20 * 2 + 12 * 2
    with pytest.raises(UserError, match="runs A6, baseline are in several"):
        read_results([path, save(tmp_path / "again.csv", [evaluations("A6"), evaluations("baseline")])])


MISTAKES = {
    "no samples": (POINTS.drop(columns="samples_seen"), r"points\.csv: no column 'samples_seen'"),
    "a word": (POINTS.astype({"val_loss": object}).replace({1.3: "?"}), r"row 13: val_loss is '\?'"),
    "an optional word": (POINTS.assign(train_loss="low"), "row 2: train_loss is 'low'"),
    "two at one step": (pd.concat([POINTS, POINTS[:1].assign(val_loss=3)]), "two evaluations at step 766"),
    "no points": (POINTS[:0], "0 rows"),
    "a run twice": (
        pd.DataFrame({"run_id": ["A1", "A6", "A1"], "best_val_loss": [1.3, 1.4, 1.5]}),
        "run A1 is there twice",
    ),
    "a loss below zero": (pd.DataFrame({"run": ["A1", "A6"], "val_loss": [1.3, -1]}), "row 3: val_loss is -1"),
    "no such architecture": (
        pd.DataFrame({"run": ["a", "b"], "val_loss": [1.3, 1.2], "arch": ["fov", "mamba"]}),
        "run b has architecture .mamba.",
    ),
    "no samples in a result": ([result(), result(total_flops=None, step=2)], "result 2: no samples_seen"),
    "an unknown model": ([result("transformer")], "model_type is 'transformer'"),
    "a word in a result": ([result(loss="low")], "loss_mean is 'low'"),
    "a result twice": ([result(), result()], "two evaluations at step 100"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_missing_is_named(tmp_path, name):
    content, expected = MISTAKES[name]
    path = tmp_path / ("points.csv" if isinstance(content, pd.DataFrame) else "results.json")
    if isinstance(content, pd.DataFrame):
        content.to_csv(path, index=False)
    else:
        path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=expected):
        read_results([path])


def test_an_import_of_nothing_is_refused():
    with pytest.raises(UserError, match="no results are named"):
        read_results([])


def test_what_a_file_says_of_the_learning_rate_is_kept(tmp_path, capsys):
    frames = [evaluations("baseline", lr_schedule="cosine"), evaluations("A1", 1.4, lr_schedule="constant")]
    frames.append(evaluations("A6", 1.5).assign(lr_schedule=["constant"] * 6 + ["cosine"] * 6))
    tables = read_results([save(tmp_path / "points.csv", frames)])
    said = tables["runs"].set_index("run")["config.optim.schedule"]
    assert said.to_dict() == {"baseline": "cosine", "A1": "constant", "A6": "constant and cosine"}
    write_tables(tmp_path / "tables", tables)
    assert spoken(CHECK, tmp_path)["decaying_rate"] == ["baseline", "A6"]
    assert list(spoken(RUNS, tmp_path)["fits"]) == ["A1"]
    capsys.readouterr()
    unsaid = read_results([save(tmp_path / "other.csv", [evaluations("baseline"), evaluations("A1")])])
    write_tables(tmp_path / "tables", unsaid)
    assert spoken(CHECK, tmp_path)["decaying_rate"] == []
