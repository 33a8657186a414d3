"""Tables and figures of results from elsewhere."""

import numpy as np
import pandas as pd
import pytest

from fvlm import style
from fvlm.analysis.catalog import FIGURES, OF_RESULTS
from fvlm.analysis.files import read_table, read_tables
from fvlm.analysis.tables import load
from tests.figure_cases import write_tables
from tests.imported_cases import (
    ABLATIONS,
    CHECK,
    JOINT,
    POOLED,
    RUNS,
    check_finished,
    drawn,
    evaluations,
    grid,
    long_runs,
    pairs,
    read_results,
    reference,
    save,
    spoken,
)
from tests.test_analysis_fits import REFERENCE


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
    missing = {"seeing", "benchmarks", "attention_heatmaps", "isoflop_optimum", "fine_coarse_ratio"}
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
        "import_results": 1, "draw_results": 1, "decisions": 1, "front_page": 1, "figures": 1
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
    assert workflow.planned("figures", *options) == {"figure": 1, "front_page": 1, "figures": 1}
    assert workflow.planned("results/imported/figures/contours.png", *options) == {"figure": 1}
    refused = workflow.run("results/imported/figures/gap.png", *options, ok=False)
    assert f"figure gap: fvlm figure: gap: nothing to draw: {missing['gap']}\n" in refused
    assert not (folder / "figures/gap.png").exists()
