"""Results from elsewhere become the tables that collecting a study makes."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest

from fvlm import style
from fvlm.__main__ import main
from fvlm.analysis import finished, imported
from fvlm.analysis.catalog import COLLECTED, FIGURES, OF_RESULTS, TABLES
from fvlm.analysis.columns import COLUMNS, COUNTED, GROUP, RUN
from fvlm.analysis.files import read_table, read_tables, write_table
from fvlm.analysis.tables import load
from fvlm.config.resolve import study_from_files
from fvlm.config.study_file import OWN
from fvlm.costs.amounts import flops_per_sample
from fvlm.errors import UserError
from tests.analysis_cases import BUDGETS, COMPARISONS, SIZES, collect, law, study_summaries, write_study
from tests.figure_cases import write_tables
from tests.test_analysis_fits import REFERENCE

read_results, check_finished, place_of, short_names = (
    partial(function, known=COMPARISONS.ablations)
    for function in (imported.read_results, finished.check_finished, finished.place_of, finished.short_names)
)
reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference data (FVLM_TEST_REFERENCE)")


def evaluations(run, final=1.3, n=12, samples=32 * 9200, **columns):
    """Evaluation points of one run as a foreign study writes them; the best is the last but one."""
    place = np.arange(1, n + 1)
    loss = final + 0.5 * np.exp(-place / 3.0)
    loss[-2], loss[-1] = final - 0.01, final
    frame = pd.DataFrame({"run_id": run, "step": place * 9200 // n, "samples_seen": place * samples / n})
    return frame.assign(val_loss=loss, train_loss=loss - 0.1, attention_entropy=3.4, lr=1e-4, **columns)


ABLATIONS = {"baseline": 1.36, "A1_deep_query_off": 1.35, "A6_coarse_only": 1.37, "A7_shallow": 1.375, "F1_freeze": 1.9}


def save(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(frames, ignore_index=True).to_csv(path, index=False)
    return path


def grid():
    """Points of a scaling grid that say N and FLOPs."""
    frames = []
    for size, pair in SIZES.items():
        for budget, flops in BUDGETS.items():
            for letter, n in zip("FB", pair, strict=True):
                d = flops / (n * 1500)
                frame = evaluations(f"{size}-{budget}-{letter}", law(n, d, letter), samples=d)
                frames.append(frame.assign(total_params=n, total_flops=flops * frame["samples_seen"] / d))
    return frames


def drawn(tables, folder, figures=tuple(name for name in FIGURES if not FIGURES[name].attention)):
    """Figure -> its numbers, or the words that say why it is not drawn; all by the commands of the workflow."""
    write_tables(folder / "tables", tables)
    where = ["--tables", str(folder / "tables")]
    for name in TABLES:
        assert main(["table", name, *where, "--out", str(folder / "tables" / f"{name}.csv")]) == 0
    missing, out = folder / "missing.csv", folder / "figures"
    assert (
        main(["figure", *figures, *where, "--out-dir", str(out), "--empty", "skip", "--not-drawn", str(missing)]) == 0
    )
    found = pd.read_csv(missing).set_index("figure")["reason"].to_dict()
    for name in found:
        assert not list(out.glob(f"{name}.*"))
    return found | {name: pd.read_csv(out / f"{name}.csv") for name in figures if name not in found}


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


def test_points_of_ablations_draw_their_figures(tmp_path):
    path = save(tmp_path / "points.csv", [evaluations(run, loss) for run, loss in ABLATIONS.items()])
    found = drawn(read_results([path]), tmp_path)
    shown = {name for name, numbers in found.items() if not isinstance(numbers, str)}
    expected = {"ablation_ranking", "factorial", "freezing", "attention_entropy", "training_curves", "token_efficiency"}
    assert shown == {*expected, "foveated_vs_alternatives"}
    beside = found["foveated_vs_alternatives"].set_index("run")["difference"]  # of best validation losses
    assert beside.loc[["A6", "A1"]].tolist() == pytest.approx([0.01, -0.01])
    factorial = read_table(tmp_path / "tables", "factorial").set_index(["measure", "effect"])["estimate"]
    interaction = next(value for (measure, name), value in factorial.items() if measure == "final" and "inter" in name)
    assert interaction == pytest.approx(1.36 - 1.35 - 1.37 + 1.375)
    style.apply()
    needs = FIGURES["token_efficiency"].needs
    figure, _ = load(FIGURES["token_efficiency"].function)(**read_tables(tmp_path / "tables", needs))
    assert len(figure.axes) == 1  # nothing says what a sample costs
    style.plt.close(figure)


def test_points_of_a_grid_draw_the_scaling_figures(tmp_path):
    found = drawn(read_results([save(tmp_path / "points.csv", grid())]), tmp_path)
    for name in ("loss_vs_flops", "isoflop", "model_size_scaling", "gap", "training_curves"):
        assert not isinstance(found[name], str), found[name]
    ratio = found["chinchilla_ratio"].set_index(["architecture", "size", "budget"])["tokens_per_parameter"]
    assert len(ratio) == 24 and ratio["multi_token", "135M", "C1"] > ratio["foveated", "135M", "C1"]  # 16 and 1 a frame
    gaps = read_table(tmp_path / "tables", "gap")
    assert len(gaps) == 12 and (gaps["raw_percent"] > 0).all()
    fits = read_table(tmp_path / "tables", "scaling_fits")
    assert fits.loc[(fits["fit"] == "parameters and samples") & (fits["parameter"] == "E"), "identified"].all()


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


def long_runs(schedule="constant", **changed):
    """A run of 135M that falls by a power law with a floor, a flat one of 360M, and two decaying grid runs."""
    rng, frames = np.random.default_rng(0), []
    for run, size, n, (a, b, floor), rate in (
        ("135M-scaling", "135M", 60, (30, 0.4, 1.0), schedule),
        ("360M-scaling", "360M", 60, (0.0, 1.0, 1.4), schedule),
        ("135M-C1-F_20260216_080531", "135M", 6, (30, 0.4, 1.1), "cosine"),
        ("135M-C2-F", "135M", 20, (30, 0.4, 1.05), "cosine"),
    ):
        samples = 8000.0 * np.arange(1, n + 1)
        loss = (floor + a * samples**-b) * np.exp(0.004 * rng.normal(size=n))
        lr = np.linspace(1e-3, 9e-4 if run == changed.get("unfinished") else 1e-4, n)
        frame = pd.DataFrame({"run_id": run, "step": samples / 32, "samples_seen": samples, "val_loss": loss, "lr": lr})
        frames.append(
            frame.assign(lr_schedule=rate, model_size=size, total_params={"135M": 157.6e6, "360M": 382.6e6}[size])
        )
    return frames


def test_long_runs_draw_the_scaling_figures_and_are_fitted_along(tmp_path):
    tables = read_results([save(tmp_path / "points.csv", long_runs())])
    assert tables["runs"].set_index("run")["family"].to_dict() == {
        "135M-scaling": "scaling", "360M-scaling": "scaling", "135M-C1-F": "grid", "135M-C2-F": "grid"
    }  # fmt: skip
    names = ("loss_vs_flops", "training_curves", "model_size_scaling", "envelope", "isoflop", "chinchilla_ratio")
    found = drawn(tables, tmp_path, names)
    fits = found["loss_vs_flops"].query("what == 'exponent'").set_index("run")
    law = fits.loc["135M-scaling"]
    assert law["low"] < 0.4 < law["high"] and law["value"] == pytest.approx(0.4, abs=0.1)
    assert np.isnan(fits.loc["360M-scaling", "value"]) and "identified" in fits.loc["360M-scaling", "reason"]
    assert fits["value"].notna().sum() == 1 and len(fits) == 3  # one of the two ends, which carry no law
    text = (tmp_path / "figures" / "loss_vs_flops.rst").read_text()
    assert "at SmolVLM2's 3.3 M samples" in text and "no power law identified" in text
    star = found["loss_vs_flops"].query('what == "SmolVLM2\'s 3.3 M samples"').iloc[0]
    assert star["low"] < 1 + 30 * 3.3e6**-0.4 < star["high"]
    sizes = found["isoflop"].query("what == 'run'").groupby("budget")["size"].nunique()
    assert len(sizes) == 4 and (sizes == 2).all() and not (found["isoflop"]["what"] == "minimum").any()
    assert found["model_size_scaling"]["D"].tolist() == pytest.approx([480e3] * 2)


def test_a_decaying_rate_is_fitted_only_at_its_ends(tmp_path):
    frames = long_runs("cosine", unfinished="135M-C2-F")
    tables = read_results([save(tmp_path / "points.csv", frames)])
    runs = tables["runs"].set_index("run")["family"]
    assert runs.loc[["135M-C1-F", "135M-C2-F"]].tolist() == ["grid", "scaling"]  # the rate of C2 is still high
    found = drawn(tables, tmp_path, ("loss_vs_flops", "isoflop"))
    assert "equal FLOPs" in found["isoflop"]
    assert found["loss_vs_flops"].query("what == 'exponent'")["runs"].tolist() == [1]
    assert (found["loss_vs_flops"]["what"] == "run").sum() == 4  # all points are shown


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


def result(model_type="foveated", step=100, loss=4.4, **more):
    one = {"config": "64-frame", "model_type": model_type, "step": step, "loss_mean": loss, "num_frames": 64}
    return one | {"visual_tokens": 64, "total_flops": 1e12 * 16 * step, "flops_per_sample": 1e12} | more


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


POINTS = evaluations("baseline")
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


@reference
def test_the_reference_is_drawn(tmp_path):
    folder = REFERENCE / "release_scaling_data"
    tables = read_results([folder / "all_eval_points.csv"])
    runs = tables["runs"].set_index("run")
    assert len(runs) == 25 and len(tables["validation_curves"]) == 1002
    assert runs.loc["135M-C4-F", "params_total"] == 157.6e6  # it has no summary of its own
    assert runs.loc["360M-scaling", "params_total"] == 382.6e6
    others = ("derived/comprehensive_scaling.csv", "scaling_64frames/scaling_64frames.json")
    others = [REFERENCE / name for name in (*others, "derived/earlier_scaling_points.csv")]
    found = drawn(read_results([folder / "all_eval_points.csv", *others]), tmp_path / "all", OF_RESULTS)
    missing = {"seeing", "attention_heatmaps", "isoflop_optimum", "fine_coarse_ratio"}
    assert {name for name, one in found.items() if isinstance(one, str)} == missing
    raw = found["gap"].set_index(["size", "budget"])["raw_percent"]
    frames = {n: f"comprehensive_scaling, {n} frames" for n in (8, 64)}
    assert [
        raw[pair] for pair in (("S-S", frames[8]), ("M-S", frames[8]), ("S-S", frames[64]), ("M-S", frames[64]))
    ] == (pytest.approx([2.82, 2.35, 2.96, 3.93], abs=0.005))
    found = drawn(tables, tmp_path, ("factorial",))
    factorial = read_table(tmp_path / "tables", "factorial")
    best = factorial.loc[factorial["measure"] == "best", "estimate"]
    assert best.tolist() == pytest.approx([0.0034, -0.0161, 0.0160], abs=5e-5)
    more = read_results([REFERENCE / "scaling_64frames" / "scaling_64frames.json"])
    assert more["runs"]["samples"].tolist() == [4800, 4800] and more["runs"]["visual_tokens"].tolist() == [1, 16]


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


RUNS = ("powerlaw", "--by", "run", "--x", "D", "--loss", "squares", "--keep", "lr_schedule=constant")
POOLED = ("powerlaw", "--by", "size", "--x", "D", "--loss", "squares", "--keep")
POOLED = (*POOLED, "run=135M-C1-F,135M-C2-F,135M-C3-F,135M-C4-F")
JOINT = ("fit", "--keep", "lr_schedule=constant", "--bootstrap", "1000")
CHECK = ("check-curves", "--columns", "val_loss=L,samples=D")


def spoken(words, folder, table="curves") -> dict:
    """The JSON that a command writes of a folder's table."""
    path, out = folder / "tables" / f"{table}.csv", folder / "out.json"
    assert main(["table", table, "--tables", str(path.parent), "--out", str(path)]) == 0
    assert main([words[0], str(path), *words[1:], "--out", str(out)]) == 0
    return json.loads(out.read_text())


@reference
def test_the_fits_of_the_reference_come_out_of_an_import(tmp_path):
    write_tables(tmp_path / "tables", read_results([REFERENCE / "release_scaling_data" / "all_eval_points.csv"]))
    runs = spoken(RUNS, tmp_path)["fits"]
    assert list(runs) == ["135M-scaling", "360M-scaling"]
    found = [runs["135M-scaling"][name] for name in ("A", "alpha", "L_inf")]
    assert found == pytest.approx([13.73, 0.346, 1.057], abs=0.003)
    assert runs["360M-scaling"]["alpha"] is None and "too wide" in runs["360M-scaling"]["reason"]
    pooled = spoken(POOLED, tmp_path)["fits"]
    assert list(pooled) == ["135M"] and pooled["135M"]["n"] == 82
    best = [pooled["135M"]["optimum"][name] for name in ("A", "alpha", "L_inf")]
    assert best == pytest.approx([3321.8, 0.9261, 1.279], rel=1e-4)
    assert pooled["135M"]["alpha"] is None and "4 runs whose learning rate decays" in pooled["135M"]["reason"]
    assert "2 values of N" in spoken(JOINT, tmp_path)["reason"]
    assert len(spoken(CHECK, tmp_path)["decaying_rate"]) == 23


def pairs(**columns):
    """A table with one row per run: two architectures in two sizes, at 8 and at 64 frames."""
    rows = []
    for frames, above in (("8", 0.1), ("64", 0.2)):
        for arch, more in (("fov", above), ("bas", 0.0)):
            for config, n, loss in (("small", 159.0, 4.0), ("large", 386.0, 3.7)):
                rows.append({"run": f"{config}_{frames}f_{arch}", "config": config, "frames": frames, "arch": arch})
                rows[-1] |= {"params_M": n * (1 + 0.07 * (arch == "bas")), "val_loss": loss + more, "samples": 4480}
    return pd.DataFrame(rows).assign(**columns)


def test_a_table_of_runs_at_equal_samples_gives_their_gaps(tmp_path):
    tables = read_results([save(tmp_path / "runs.csv", [pairs()])])
    runs = tables["runs"].set_index("run")
    assert (runs["family"] == "pairs").all() and runs.loc["small_8f_fov", "params_total"] == 159e6
    assert runs.loc["large_64f_bas", ["size", "budget", "architecture"]].tolist() == [
        "large",
        "64 frames",
        "multi_token",
    ]
    found = drawn(tables, tmp_path, ("gap", "gap_arrows", "isoflop", "loss_vs_flops"))
    raw = found["gap"].set_index(["budget", "size"])["raw_percent"]
    assert raw["8 frames"].tolist() == pytest.approx([100 * 0.1 / 4.0, 100 * 0.1 / 3.7])
    assert raw["64 frames"].tolist() == pytest.approx([100 * 0.2 / 4.0, 100 * 0.2 / 3.7])
    assert len(found["gap_arrows"]) == 4
    assert "no scaling grid" in found["isoflop"]  # at equal samples
    assert "both its training FLOPs and its final loss" in found["loss_vs_flops"]
    decided = read_table(tmp_path / "tables", "decisions").set_index("sweep")["verdict"]
    assert decided["equal compute"] == "not run"
    columns = ("--columns", "group=budget,pair=size", "--baseline", "multi_token")
    assert len(spoken(("gap", *columns), tmp_path, "points_by_run")["groups"]) == 2


def test_a_curve_that_rises_is_told_beside_its_gap(tmp_path):
    losses = pairs()["val_loss"].mask(pairs()["run"] == "large_8f_fov", 4.2)
    found = drawn(read_results([save(tmp_path / "runs.csv", [pairs(val_loss=losses)])]), tmp_path, ("gap",))["gap"]
    rising = found["note"].str.contains("the foveated curve rises with N")
    assert rising.tolist() == (found["budget"] == "8 frames").tolist()
    assert "In 2 of 4 a curve that is read off rises" in (tmp_path / "figures" / "gap.rst").read_text()


def test_a_table_of_runs_without_their_architecture_is_ranked(tmp_path):
    table = pd.DataFrame({"run_id": list(ABLATIONS), "best_val_loss": ABLATIONS.values(), "total_samples": 3e5})
    path = save(tmp_path / "run_summaries.csv", [table.assign(total_params=157.6e6)])
    runs = read_results([path])["runs"]
    assert runs["run"].tolist() == ["baseline", "A1", "A6", "A7", "F1"] and (runs["family"] == "ablation").all()
    assert runs["best.val_loss"].tolist() == list(ABLATIONS.values()) and runs["final.val_loss"].isna().all()
    found = drawn(read_results([path]), tmp_path, ("ablation_ranking",))["ablation_ranking"]
    assert found.set_index("run").loc["A1", "difference"] == pytest.approx(-0.01)
    points = save(tmp_path / "points.csv", [evaluations(run, loss) for run, loss in ABLATIONS.items()])
    check_finished([points, path])
    assert len(read_results([points, path])["runs"]) == 5  # beside the points they only add to them


@pytest.mark.workflow
def test_results_are_drawn_by_two_jobs_and_what_they_do_not_allow_is_listed_once(workflow):
    save(workflow.folder / "points.csv", [*long_runs(), *(evaluations(run, loss) for run, loss in ABLATIONS.items())])
    options = ("--config", "results_from=points.csv")
    assert workflow.planned("figures", *options) == {
        "import_results": 1, "draw_results": 1, "decisions": 1, "figures": 1
    }  # fmt: skip
    output = workflow.run("figures", *options)
    folder = workflow.folder / "results/imported"
    missing = pd.read_csv(folder / "figures/not_drawn.csv").set_index("figure")["reason"]
    pictures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"loss_vs_flops", "factorial", "freezing"} <= pictures and {"seeing", "gap"} <= set(missing.index)
    assert pictures | set(missing.index) == set(OF_RESULTS) and not pictures & set(missing.index)
    assert (folder / "logs/draw_results.log").read_text().count("not drawn: gap: no foveated run") == 1
    assert "figures/not_drawn.csv" in output and "figures/seeing.png" not in output
    page = (folder / "report.html").read_text()
    assert "not_drawn.csv" in page and "factorial.png" in page and "gap.png" not in page
    assert "at SmolVLM2" in page and "Does the fine pass need the deep query" in page  # captions, as of a study
    assert workflow.planned("figures", *options) == {}
    (folder / "figures/factorial.png").unlink()
    assert workflow.planned("figures", *options) == {"figure": 1, "figures": 1}
    assert workflow.planned("results/imported/figures/contours.png", *options) == {"figure": 1}
    refused = workflow.run("results/imported/figures/gap.png", *options, ok=False)
    assert f"figure gap: fvlm figure: gap: nothing to draw: {missing['gap']}\n" in refused
    assert not (folder / "figures/gap.png").exists()
