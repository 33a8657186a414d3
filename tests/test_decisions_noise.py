"""One seed is not no knowledge: what other runs' seeds, or the curves, show about the noise between seeds."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from fvlm.__main__ import main
from fvlm.analysis.compare.bootstrap import OVER_SEEDS, OVER_VIDEOS, Estimate
from fvlm.analysis.compare.noise import DOUBT, FEWEST, Noise, between_seeds, of_last_evaluations, slopes
from fvlm.analysis.compare.runs import ComparedRuns
from fvlm.analysis.decisions.page import opening, render
from fvlm.analysis.decisions.scaling import scaling_rows
from fvlm.analysis.decisions.verdicts import DECIDED, LIKELY, OPEN, judge
from fvlm.analysis.files import read_table
from tests.analysis_cases import ablation
from tests.compare_cases import curve, made, run, save
from tests.test_analysis_compare import NOTHING, evaluation_of, runs_of
from tests.test_analysis_fits import REFERENCE
from tests.test_decisions import NO_GRID, brute_force, decisions, grid_of

SEEDS, CURVES = "between seeds of", "of the last evaluations"
PAIR = np.array([1.0, -1.0])


def wobble(final, spread, n=24, seed=0):
    """A falling curve that ends around `final`, with independent noise."""
    rng = np.random.default_rng(seed)
    return final + 0.8 * np.exp(-np.arange(n) / 2.0) + spread * rng.normal(size=n)


def curves_of(spread=0.003, n=24, **finals):
    """The table of validation curves of some runs."""
    frames = [curve(name, wobble(final, spread, n, seed)) for seed, (name, final) in enumerate(finals.items())]
    return pd.concat(frames).rename(columns={"run_id": "run", "samples_seen": "samples"})


def decided(tmp_path, curves=None, evaluated=False, **levels):
    """Decisions, by sweep, of ablations given by base name with one loss per seed from 42."""
    found = [ablation(base, loss, seed) for base, losses in levels.items() for seed, loss in enumerate(losses, 42)]
    modes = {"A6": "coarse_only", "A7": "coarse_only"}
    losses = {(one["run"], modes.get(one["run"][:2], "coarse_fine"), "own"): one["best"]["val_loss"] for one in found}
    tables = evaluation_of(tmp_path, losses) if evaluated else NOTHING
    return decisions(runs_of(found), *tables, *NO_GRID, validation_curves=curves).set_index("sweep")


# --- how large the noise is ---


@pytest.mark.parametrize(("seeds", "paired"), [(2, True), (2, False), (4, True), (4, False)])
def test_two_runs_show_the_spread_of_their_difference(seeds, paired):
    rng = np.random.default_rng(seeds)
    one, two = rng.normal(size=(2, seeds)) + rng.normal(size=seeds)
    rows = [(run, seed, loss) for run, own in (("a", one), ("b", two)) for seed, loss in enumerate(own)]
    rows += [("c", 0, 5.0), ("d", 9, 7.0)]  # one seed shows nothing
    found = between_seeds(pd.DataFrame(rows, columns=["run", "seed", "loss"]), paired)
    if paired:
        expected, degrees = np.std(one - two, ddof=1), seeds - 1
    else:
        expected, degrees = np.sqrt(np.var(one, ddof=1) + np.var(two, ddof=1)), 2 * (seeds - 1)
    assert found.weighted(PAIR).spread == pytest.approx(expected) and (found.degrees, found.runs) == (degrees, 2)


def test_many_runs_are_pooled_and_one_run_alone_is_not_paired():
    rng = np.random.default_rng(1)
    losses = rng.normal(size=(4, 3)) + 3 * rng.normal(size=3) + np.arange(4)[:, None]
    rows = [(f"r{i}", j, losses[i, j]) for i, j in np.ndindex(4, 3)]
    table = pd.DataFrame(rows, columns=["run", "seed", "loss"])
    pairs = [np.var(losses[i] - losses[j], ddof=1) for i, j in itertools.combinations(range(4), 2)]
    found = between_seeds(table, paired=True).weighted(PAIR)
    assert found.spread == pytest.approx(np.sqrt(np.mean(pairs))) and found.degrees == 6
    alone = between_seeds(table[table["run"] == "r2"], paired=True)
    assert alone.spread == pytest.approx(np.std(losses[2], ddof=1)) and (alone.degrees, alone.runs) == (2, 1)
    assert not between_seeds(table[table["seed"] == 0], paired=True).known


def test_a_curve_shows_the_spread_around_its_trend():
    own = [curve("a", wobble(1.3, 0.01, n=4000, seed=1)), curve("b", wobble(1.9, 0.02, n=4000, seed=2))]
    found = of_last_evaluations(own, PAIR)
    assert found.spread == pytest.approx(np.hypot(0.01, 0.02), rel=0.05) and found.runs == 0
    assert 998 < found.degrees < 2 * 998  # of both, by Satterthwaite
    steep = own[0].assign(val_loss=own[0]["val_loss"] - 0.001 * np.arange(4000))
    assert of_last_evaluations([steep, own[1]], PAIR).spread == pytest.approx(found.spread, rel=1e-3)
    last = own[0]["val_loss"].iloc[-6:].to_numpy()
    residuals = last - np.polyval(np.polyfit(np.arange(6), last, 1), np.arange(6))
    few = of_last_evaluations([own[0].iloc[-24:]], np.array([1.0]))
    assert few.spread == pytest.approx(np.sqrt((residuals**2).sum() / 4)) and few.degrees == pytest.approx(4)
    assert not of_last_evaluations([own[0], own[1].iloc[: 4 * FEWEST - 4]], PAIR).known  # the second is too short


def test_a_difference_within_the_noise_is_likely_as_rarely_as_promised():
    """Runs of equal quality: of a sweep of three alternatives, 5 % have one that is called likely."""
    rng, false, trials = np.random.default_rng(0), 0, 400
    level = 1 - 0.05 / 3
    names = [(f"r{i}", j) for i, j in np.ndindex(3, 3)]
    for _ in range(trials):
        of_seed = 2 * rng.normal(size=3)
        losses = rng.normal(size=(7, 3)) + of_seed + 5 * rng.normal(size=7)[:, None]
        rows = [(run, j, losses[int(run[1]), j]) for run, j in names]  # the last four runs have one seed
        noise = between_seeds(pd.DataFrame(rows, columns=["run", "seed", "loss"]), paired=True).weighted(PAIR)
        own = rng.normal(size=4) + of_seed[0]
        false += any(
            judge(Estimate(own[i] - own[0], n_seeds=1), level, "", noise)["verdict"] == LIKELY for i in (1, 2, 3)
        )
    assert 0.015 < false / trials < 0.075


# --- what follows for a difference of one seed ---


def test_the_curves_make_a_huge_difference_likely_and_leave_a_small_one_open(tmp_path):
    levels = {"baseline": 1.36, "F2": 1.94, "A6": 1.37}
    curves = curves_of(**levels)
    table = decided(tmp_path, curves, **{run: [loss] for run, loss in levels.items()})
    freezing, fine = table.loc["freezing"], table.loc["fine pass"]
    assert freezing["verdict"] == LIKELY and not freezing["changes_default"] and freezing["noise_from"] == CURVES
    of_run = dict(list(curves.groupby("run")))
    expected = of_last_evaluations([of_run["F2"], of_run["baseline"]], PAIR)
    assert freezing["noise"] == pytest.approx(expected.spread)
    limit = DOUBT * t.ppf(0.975, expected.degrees) * expected.spread
    assert freezing["likely_above"] == pytest.approx(limit) and limit < freezing["estimate"]
    times = freezing["estimate"] / freezing["noise"]
    assert (
        50 < times < 500
        and f"one seed; about {float(f'{times:.2g}'):g} times the spread {CURVES}" in (freezing["answer"])
    )
    assert fine["verdict"] == OPEN and fine["noise_from"] == CURVES and "likely from" in fine["answer"]
    assert fine["answer"].startswith("No conclusion: ") and fine["estimate"] < fine["likely_above"]
    assert all(np.isnan(row["more_seeds"]) and "at least 1 more seed" in row["needs"] for row in (freezing, fine))
    short = decided(tmp_path, curves_of(n=4 * FEWEST - 4, **levels), **{run: [loss] for run, loss in levels.items()})
    assert short.loc["freezing", "verdict"] == OPEN and np.isnan(short.loc["freezing", "noise"])
    assert "nothing shows the noise between seeds" in short.loc["freezing", "answer"]


def test_seeds_of_other_runs_are_used_before_the_curves(tmp_path):
    levels = {"baseline": [1.30, 1.32, 1.29], "A1": [1.25, 1.262, 1.245], "F2": [1.9], "A6": [1.303]}
    curves = curves_of(spread=0.1, **{run: losses[0] for run, losses in levels.items()})
    table = decided(tmp_path, curves, **levels)
    freezing, fine = table.loc["freezing"], table.loc["fine pass"]
    differences = np.subtract(levels["A1"], levels["baseline"])
    for row, verdict in ((freezing, LIKELY), (fine, OPEN)):
        assert row["verdict"] == verdict and row["noise_from"] == f"{SEEDS} 2 runs"
        assert row["noise"] == pytest.approx(differences.std(ddof=1))
        assert row["likely_above"] == pytest.approx(t.ppf(0.975, 2) * differences.std(ddof=1))
        further = brute_force(row["estimate"], row["noise"], 1)
        assert row["more_seeds"] == further or (further is None and np.isnan(row["more_seeds"]))
    assert "No significant difference" in fine["answer"] and f"times the spread {SEEDS} 2 runs" in fine["answer"]
    assert table.loc["query depth", "verdict"] == DECIDED and np.isnan(table.loc["query depth", "noise"])


def test_a_sweep_of_more_alternatives_needs_more(tmp_path):
    levels = {"baseline": [1.30, 1.31, 1.29], "A1": [1.30, 1.30, 1.31], "LR2": [1.23]}
    alone = decided(tmp_path, **levels).loc["learning rate"]
    three = decided(tmp_path, **levels, LR3=[1.31], LR4=[1.32]).loc["learning rate"]
    assert alone["noise"] == three["noise"] and alone["verdict"] == LIKELY and three["verdict"] == OPEN
    assert three["likely_above"] / three["noise"] == pytest.approx(t.ppf(1 - 0.025 / 3, 2))


def test_runs_of_one_seed_that_do_not_differ_from_the_best_are_named(tmp_path):
    levels = {"baseline": [1.30, 1.31, 1.29], "A1": [1.30, 1.30, 1.31], "LR2": [1.1], "LR3": [1.101], "LR4": [1.29]}
    row = decided(tmp_path, **levels).loc["learning rate"]
    assert row["verdict"] == LIKELY and "Not significantly different from LR2: LR3." in row["answer"]


def test_an_interval_over_videos_and_the_noise_must_both_be_exceeded(tmp_path):
    seeds = {"A1": [1.30, 1.36, 1.27], "LR4": [1.31, 1.33, 1.30]}
    row = decided(tmp_path, evaluated=True, baseline=[1.30], A6=[1.35], **seeds).loc["fine pass"]
    assert row["interval"] == OVER_VIDEOS and row["low"] > 0  # the videos alone would make it likely
    assert row["verdict"] == OPEN and row["estimate"] < row["likely_above"] and row["measure"] == "evaluation loss"
    assert "over evaluation videos, one seed; about" in row["answer"] and row["more_seeds"] > 1
    far = decided(tmp_path, evaluated=True, baseline=[1.30], A6=[2.35], **seeds).loc["fine pass"]
    assert far["verdict"] == LIKELY and far["estimate"] > far["likely_above"]
    nothing = decided(tmp_path, evaluated=True, baseline=[1.30], A6=[1.35]).loc["fine pass"]
    assert nothing["verdict"] == LIKELY and "nothing shows the noise between seeds" in nothing["answer"]


@pytest.mark.parametrize(
    ("estimate", "noise", "verdict"),
    [
        (Estimate(1e6, n_seeds=1), Noise(0.01, 10.0, 3), LIKELY),  # never decided
        (Estimate(0.03, n_seeds=1), Noise(0.01, 1e9, 3), LIKELY),
        (Estimate(0.03, n_seeds=1), Noise(0.01, 1e9, 0), OPEN),  # three spreads of a lower bound
        (Estimate(0.03, -0.01, 0.07, OVER_VIDEOS, 1), Noise(0.01, 1e9, 3), OPEN),
        (Estimate(0.03, 0.01, 0.05, OVER_SEEDS, 2), Noise(1.0, 10.0, 3), DECIDED),  # its own seeds count
        (Estimate(0.03, n_seeds=1), Noise(), OPEN),
        (Estimate(0.03, n_seeds=1), Noise(0.0, 10.0, 3), OPEN),  # copies show nothing
    ],
)
def test_the_verdict_of_one_seed(estimate, noise, verdict):
    assert judge(estimate, 0.95, "", noise)["verdict"] == verdict


def test_runs_scored_on_other_tokens_show_nothing_about_these(tmp_path):
    shares = {"A8a": {"image": 0.86, "text": 0.14}}
    found = [ablation("baseline", 1.3), ablation("A6", 1.4)]
    found += [ablation("A8a", loss, seed, shares["A8a"]) for seed, loss in ((42, 2.8), (43, 2.9), (44, 2.7))]
    row = decisions(runs_of(found), *NOTHING, *NO_GRID).set_index("sweep").loc["fine pass"]
    assert row["verdict"] == OPEN and np.isnan(row["noise"])


def test_the_gap_of_a_grid_with_one_seed_has_the_noise_of_its_curves():
    runs = grid_of((42,))
    curves = curves_of(**dict(runs[["run", "final.val_loss"]].to_numpy()))
    empty = pd.DataFrame(columns=["fit", "parameter"])
    study = ComparedRuns(runs, *NOTHING, curves)
    row = {one["sweep"]: one for one in scaling_rows(study, empty, empty)}["equal compute"]
    own = runs.set_index(["size", "budget", "letter"])["final.val_loss"].unstack()
    spread = {name: of_last_evaluations([part], np.ones(1)).spread for name, part in curves.groupby("run")}
    parts = []
    for (size, budget), losses in own.iterrows():
        f, b = losses["F"], losses["B"]
        parts += [spread[f"{size}-{budget}-F"] * 100 / b, spread[f"{size}-{budget}-B"] * 100 * f / b**2]
    assert row["noise"] == pytest.approx(np.linalg.norm(parts) / len(own), rel=1e-4)
    assert row["noise_from"] == CURVES and "times the spread of the last evaluations" in row["answer"]
    assert row["verdict"] == (LIKELY if abs(row["estimate"]) > row["likely_above"] else OPEN)


def test_slopes_of_a_sum_are_its_weights():
    weights = np.array([0.5, -0.25, 3.0])
    assert slopes(lambda x: np.tensordot(weights, x, axes=1), np.array([1.0, 2.0, 0.1])) == pytest.approx(weights)


# --- where it is shown ---


def test_imported_curves_reach_the_page_and_the_ranking(tmp_path):
    """From evaluation points of a foreign study, by the commands of the workflow."""
    finals = {"baseline": 1.36, "F2_freeze_llm": 1.94, "A6_coarse_only": 1.37, "A1": 1.35, "A7": 1.375}
    frames = [curve(name, wobble(final, 0.003, 40, seed)) for seed, (name, final) in enumerate(finals.items())]
    tables = tmp_path / "tables"
    run("import", save(tmp_path / "points.csv", *frames), "--out-dir", tables)
    for name in ("ablations", "factorial", "scaling_fits", "isoflop", "decisions"):
        run("table", name, "--tables", tables, "--out", tables / f"{name}.csv")
    table = read_table(tables, "decisions")
    row = table.set_index("sweep").loc["freezing"]
    assert row["verdict"] == LIKELY and row["noise_from"] == CURVES
    page, text = render("x", table), opening(table)
    assert row["answer"].removeprefix("Likely: ").split("(")[-1].rstrip(".") in page
    assert page.count('class="noise"') == table["likely_above"].notna().sum() > 1
    assert "◐ **likely**" in text and "times the spread of the last evaluations" in text
    ranked = read_table(tables, "ablations").set_index("run")
    assert ranked.loc["F2", "noise"] == pytest.approx(row["noise"]) and ranked.loc["F2", "noise_from"] == CURVES
    assert ranked["clear"].to_dict() == {"baseline": False, "F2": True, "A6": False, "A1": False, "A7": False}
    effects = read_table(tables, "factorial").set_index(["measure", "effect"])
    interaction = effects.loc["best"].iloc[2]
    whole = table.set_index("sweep").loc["query depth x fine pass"]
    assert interaction["noise"] == pytest.approx(whole["noise"]) and interaction["likely_above"] > 0


def test_the_commands_give_differences_of_one_seed_in_spreads(tmp_path, capsys):
    finals = {"baseline": 1.36, "A1": 1.35, "A6": 1.37, "A7": 1.375, "far": 1.9}
    frames = [curve(name, wobble(final, 0.003, 40, seed)) for seed, (name, final) in enumerate(finals.items())]
    path = save(tmp_path / "curves.csv", *frames)
    run("rank", path, "--baseline", "baseline", "--out", tmp_path / "rank.csv")
    shown, ranked = capsys.readouterr().out, pd.read_csv(tmp_path / "rank.csv").set_index("run")
    noise = of_last_evaluations([frames[4], frames[0]], PAIR)
    row = ranked.loc["far"]
    assert row["final_noise"] == pytest.approx(noise.spread) and row["noise_from"] == CURVES
    assert f"({row['final_difference'] / noise.spread:.0f} x)"[:3] in shown and "likely from" in shown
    several = save(tmp_path / "seeds.csv", *frames, *(curve(f"A1-s{s}", wobble(1.35, 0.003, 40, s)) for s in (43, 44)))
    run("rank", several, "--baseline", "baseline", "--out", tmp_path / "rank.csv")
    assert pd.read_csv(tmp_path / "rank.csv").set_index("run").loc["far", "noise_from"] == f"{SEEDS} 1 run"
    cells = "deep_fine=baseline,shallow_fine=A1,deep_coarse=A6,shallow_coarse=A7"
    capsys.readouterr()
    run("factorial", path, "--cells", cells, "--out", tmp_path / "f.json")
    effect = made(tmp_path / "f.json")["evaluations"]["final"]["effects"][0]
    assert effect["noise"] == pytest.approx(of_last_evaluations(frames[:4], np.full(4, 0.5)).spread)
    assert f"({effect['about']})" in capsys.readouterr().out


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference data (FVLM_TEST_REFERENCE)")
def test_the_published_study_is_judged_by_its_curves(tmp_path):
    points = REFERENCE / "release_scaling_data/all_eval_points.csv"
    assert main(["import", str(points), "--out-dir", str(tmp_path)]) == 0
    for name in ("scaling_fits", "isoflop", "decisions"):
        run("table", name, "--tables", tmp_path, "--out", tmp_path / f"{name}.csv")
    table = read_table(tmp_path, "decisions").set_index("sweep")
    assert table.loc["freezing", "verdict"] == LIKELY and table.loc["freezing", "noise_from"] == CURVES
    for sweep in ("query depth", "fine pass", "learning rate"):
        assert table.loc[sweep, "verdict"] == OPEN
    assert DECIDED not in set(table["verdict"])
