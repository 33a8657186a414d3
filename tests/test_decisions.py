"""What a study decides: verdicts, numbers of seeds, settings, and the page that says so."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import t

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.compare.bootstrap import LEVEL, OVER_SEEDS, OVER_VIDEOS, Estimate, t_interval
from fvlm.analysis.compare.gap import gap
from fvlm.analysis.decisions.page import opening, render
from fvlm.analysis.decisions.settings import lines
from fvlm.analysis.decisions.table import decisions
from fvlm.analysis.decisions.verdicts import DECIDED, LIKELY, MOST, NOT_RUN, OPEN, judge, more_seeds
from fvlm.analysis.files import read_table, write_table
from fvlm.analysis.fits.isoflop import isoflop
from fvlm.analysis.fits.scaling import scaling_fits
from tests.analysis_cases import COMPARISONS, KINDS, ablation, study_summaries, summary
from tests.test_analysis_compare import NOTHING, evaluation_of, orders_of, runs_of

decisions, gap = (partial(table, comparisons=COMPARISONS) for table in (decisions, gap))
NO_GRID = pd.DataFrame(columns=COLUMNS["scaling_fits"]), pd.DataFrame(columns=COLUMNS["isoflop"])
REPORT = Path(__file__).parents[1] / "workflow" / "report"
MODES = {"A6": "coarse_only", "A7": "coarse_only"} | dict.fromkeys(KINDS, "direct")


def table_of(tmp_path, evaluated=True, shares=None, **levels):
    """Decisions, by sweep, of ablations given by base name with one loss per seed from 42; and their evaluation."""
    found, losses = [], {}
    for base, values in levels.items():
        for seed, level in enumerate(values, 42):
            found.append(ablation(base, level, seed, (shares or {}).get(base)))
            losses[found[-1]["run"], MODES.get(base, "coarse_fine"), "own"] = level
    tables = evaluation_of(tmp_path, losses) if evaluated else NOTHING
    table = decisions(runs_of(found), *tables, *NO_GRID)
    assert tuple(table.columns) == COLUMNS["decisions"]
    return table.set_index("sweep"), tables[0]


def pairs_of(evaluation, base, seeds, reference="baseline", kind="all"):
    own = evaluation[(evaluation["kind"] == kind) & (evaluation["source"] == "all")].set_index("run")["loss"]
    return np.array([own[base + end] - own[reference + end] for end in ("", "-s43", "-s44", "-s45")[:seeds]])


def brute_force(value, deviation, seeds, level=LEVEL):
    """The smallest number of further seeds, one by one."""
    for more in range(1, MOST + 1):
        n = seeds + more
        if n > 1 and t.ppf((1 + level) / 2, n - 1) * deviation / np.sqrt(n) < abs(value):
            return more
    return None


def test_an_interval_over_seeds_that_excludes_zero_decides(tmp_path):
    table, evaluation = table_of(tmp_path, baseline=[1.30, 1.31, 1.29], A6=[1.35, 1.355, 1.345], A1=[1.25, 1.26, 1.24])
    row = table.loc["fine pass"]
    pairs = pairs_of(evaluation, "A6", 3)
    assert row["verdict"] == DECIDED and row["interval"] == OVER_SEEDS and row["n_seeds"] == 3
    assert row["estimate"] == pytest.approx(pairs.mean())
    assert (row["low"], row["high"]) == pytest.approx(t_interval(pairs))
    assert row["setting"] == "model.fine_pass: true" and not row["changes_default"]
    assert row["needs"] == "" and np.isnan(row["more_seeds"])
    assert f"{pairs.mean():.3f}" in row["answer"] and "higher" in row["answer"] and "3 seeds" in row["answer"]
    better = table.loc["query depth"]
    assert better["verdict"] == DECIDED and better["estimate"] < 0 and "lower" in better["answer"]
    assert better["setting"] == "model.deep_query: false" and better["changes_default"]


def test_the_use_of_frames_is_decided_by_the_frames_of_another_sample(tmp_path):
    seeds = {"baseline": 1.3, "baseline-s43": 1.32, "baseline-s44": 1.31}
    found = runs_of([summary(run, "ablation", loss, seed=42 + i) for i, (run, loss) in enumerate(seeds.items())])
    losses = {(run, "coarse_fine", "own"): loss for run, loss in seeds.items()}
    unseen = decisions(found, *evaluation_of(tmp_path, losses), *NO_GRID).set_index("sweep").loc["sight"]
    assert unseen["verdict"] == NOT_RUN and "not evaluated" in unseen["answer"]
    other = losses | {
        (run, "coarse_fine", "other"): loss + 0.5 + 0.01 * i for i, (run, loss) in enumerate(seeds.items())
    }
    row = decisions(found, *evaluation_of(tmp_path, other), *NO_GRID).set_index("sweep").loc["sight"]
    assert row["verdict"] == DECIDED and row["estimate"] == pytest.approx(0.51, abs=0.02) and row["n_seeds"] == 3
    assert "another sample's frames" in row["answer"] and "higher" in row["answer"]


def test_one_seed_is_likely_at_most_however_clear(tmp_path):
    row = table_of(tmp_path, baseline=[1.30], A6=[2.30])[0].loc["fine pass"]
    assert row["verdict"] == LIKELY and row["interval"] == OVER_VIDEOS and row["low"] > 0.9
    assert "at least 1 more seed" in row["needs"] and np.isnan(row["more_seeds"])
    assert row["setting"] == "model.fine_pass: true"
    better = table_of(tmp_path, baseline=[1.30], A6=[0.30])[0].loc["fine pass"]
    assert (
        better["verdict"] == LIKELY and better["setting"] == "model.fine_pass: true"
    )  # a default is kept until decided
    assert not better["changes_default"] and better["answer"].startswith("Likely: ")
    unshared = table_of(tmp_path, baseline=[1.30], A6=[1.40, 1.41, 1.42])[0].loc["fine pass"]
    assert unshared["verdict"] == LIKELY and unshared["n_seeds"] == 1  # only seeds in common count


def test_one_seed_without_an_evaluation_has_no_interval(tmp_path):
    row = table_of(tmp_path, evaluated=False, baseline=[1.30], A6=[1.40])[0].loc["fine pass"]
    assert row["verdict"] == OPEN and np.isnan(row["low"]) and row["estimate"] == pytest.approx(0.1)
    assert row["measure"] == "best validation loss" and "one seed, no interval" in row["answer"]
    assert "at least 1 more seed" in row["needs"]
    several = table_of(tmp_path, evaluated=False, baseline=[1.30, 1.31], A6=[1.40, 1.41])[0].loc["fine pass"]
    assert several["verdict"] == DECIDED and several["interval"] == OVER_SEEDS


def test_an_open_question_has_the_number_of_further_seeds(tmp_path):
    levels = {"baseline": [1.30, 1.32, 1.29], "A6": [1.32, 1.325, 1.32], "A9": [1.35, 1.29, 1.31]}
    table, evaluation = table_of(tmp_path, **levels)
    for sweep, base in (("fine pass", "A6"), ("third look", "A9")):
        row, pairs = table.loc[sweep], pairs_of(evaluation, base, 3)
        assert row["verdict"] == OPEN and row["low"] < 0 < row["high"]
        expected = brute_force(pairs.mean(), pairs.std(ddof=1), 3)
        assert expected is not None and row["more_seeds"] == expected
        assert f"{expected} more seed" in row["needs"] and "No significant difference" in row["answer"]


def test_a_very_small_difference_has_no_number_of_seeds(tmp_path):
    row = table_of(tmp_path, baseline=[1.30, 1.40, 1.30], A6=[1.40, 1.30, 1.3001])[0].loc["fine pass"]
    assert row["verdict"] == OPEN and np.isnan(row["more_seeds"])
    assert "50 more seeds" in row["needs"]


@pytest.mark.parametrize("level", [0.95, 1 - 0.05 / 3])
def test_the_number_of_seeds_is_the_smallest_that_does(level):
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        value, deviation, seeds = rng.normal(), np.exp(2 * rng.normal()), int(rng.integers(1, 9))
        expected = brute_force(value, deviation, seeds, level)
        assert more_seeds(value, deviation, seeds, level) == expected
        seen.add(expected)
    assert {None, 1, 2, 3} <= seen
    assert more_seeds(0.0, 1.0, 3) is None


def test_a_sweep_of_three_alternatives_has_wider_intervals(tmp_path):
    """The difference of LR2 is decided at 95 %, and not at 1 - 0.05 / 3."""
    table, evaluation = table_of(
        tmp_path, baseline=[1.30] * 3, LR2=[1.2606, 1.27, 1.2794], LR3=[1.31] * 3, LR4=[1.32] * 3
    )
    row, pairs = table.loc["learning rate"], pairs_of(evaluation, "LR2", 3)
    assert row["comparisons"] == 3 and row["confidence"] == pytest.approx(1 - 0.05 / 3)
    assert (row["low"], row["high"]) == pytest.approx(t_interval(pairs, 1 - 0.05 / 3))
    assert t_interval(pairs)[1] < 0 < row["high"] and row["verdict"] == OPEN
    assert row["more_seeds"] == brute_force(pairs.mean(), pairs.std(ddof=1), 3, 1 - 0.05 / 3)
    assert "LR3 +" in row["answer"] and "LR4 +" in row["answer"]
    alone = table_of(tmp_path, baseline=[1.30] * 3, LR2=[1.2606, 1.27, 1.2794])[0].loc["learning rate"]
    assert alone["comparisons"] == 1 and alone["verdict"] == DECIDED
    assert alone["setting"] == "optim.lr.connector: 0.001" and alone["changes_default"]
    assert "0.001 (LR2)" in alone["answer"] and "a rate of 0.0001" in alone["answer"]


def test_the_reference_wins_a_sweep_only_against_all(tmp_path):
    table, _ = table_of(tmp_path, baseline=[1.30, 1.31, 1.29], F1=[2.0, 2.01, 1.99], F2=[2.5])
    row = table.loc["freezing"]
    assert row["verdict"] == LIKELY and row["n_seeds"] == 1 and "(F2)" in row["answer"] and "F1 +0.6" in row["answer"]
    table, _ = table_of(tmp_path, baseline=[1.30, 1.31, 1.29], F1=[2.0, 2.01, 1.99], F2=[2.5, 2.51, 2.49])
    row = table.loc["freezing"]
    assert row["verdict"] == DECIDED and "(F1)" in row["answer"] and row["setting"] == "optim.freeze: []"


def test_two_better_runs_that_do_not_differ_are_named(tmp_path):
    levels = {"baseline": [1.30, 1.31, 1.29], "LR2": [1.20, 1.212, 1.19], "LR3": [1.21, 1.205, 1.195]}
    row = table_of(tmp_path, **levels)[0].loc["learning rate"]
    assert row["verdict"] == DECIDED and "Not significantly different from LR2: LR3" in row["answer"]


def test_a_sweep_without_its_runs_is_not_run(tmp_path):
    table, _ = table_of(tmp_path, baseline=[1.3], A8a=[1.3], A1=[1.3])
    assert table.loc["static frames", "verdict"] == NOT_RUN and "A8b" in table.loc["static frames", "needs"]
    assert table.loc["fine pass", "verdict"] == NOT_RUN and table.loc["fine pass", "n_seeds"] == 0
    assert "A6, A7" in table.loc["query depth x fine pass", "answer"]
    assert set(COMPARISONS.sweeps) <= set(table.index)
    orphan, _ = table_of(tmp_path, A6=[1.3])
    assert orphan.loc["fine pass", "verdict"] == NOT_RUN and "baseline" in orphan.loc["fine pass", "answer"]


def test_different_data_prevent_a_decision_unless_they_are_the_question(tmp_path):
    shares = {"D1": {"video": 0.55, "image": 0.3, "text": 0.15}, "B2": {"image": 0.86, "text": 0.14}}
    levels = {"baseline": [1.30, 1.31, 1.29], "D1": [1.2, 1.21, 1.19], "B2": [1.5, 1.51, 1.49]}
    table, evaluation = table_of(tmp_path, shares=shares, **levels)
    images = table.loc["pixel shuffle"]
    assert images["estimate"] == pytest.approx(pairs_of(evaluation, "B2", 3, kind="image").mean())
    assert images["low"] > 0 and images["interval"] == OVER_SEEDS and images["verdict"] == LIKELY
    assert "saw different data: mixture" in images["answer"] and "mixture" in images["needs"]
    mixture = table.loc["mixture"]
    assert mixture["verdict"] == DECIDED and mixture["data_differs"] == "mixture" and "on purpose" in mixture["answer"]
    assert mixture["setting"] == "data.share: {video: 0.55, image: 0.3, text: 0.15}" and mixture["changes_default"]


def test_static_frames_keep_the_default_until_decided(tmp_path):
    undecided, _ = table_of(tmp_path, baseline=[1.3], A8a=[1.30], A8b=[1.30])
    assert undecided.loc["static frames", "setting"] == "data.static_frames: 8"
    levels = {"baseline": [1.3] * 3, "A8a": [1.30, 1.31, 1.29], "A8b": [1.2, 1.21, 1.19]}
    row = table_of(tmp_path, **levels)[0].loc["static frames"]
    assert row["verdict"] == DECIDED and row["setting"] == "data.static_frames: 16" and row["changes_default"]
    assert "default was not one of the runs compared" in row["answer"]


def test_the_two_by_two_is_decided_by_its_interaction(tmp_path):
    levels = {
        "baseline": [1.30, 1.31, 1.29],
        "A1": [1.40, 1.41, 1.39],
        "A6": [1.42, 1.43, 1.41],
        "A7": [1.43, 1.44, 1.42],
    }
    table, evaluation = table_of(tmp_path, **levels)
    row = table.loc["query depth x fine pass"]
    expected = (pairs_of(evaluation, "A7", 3, "A6") - pairs_of(evaluation, "A1", 3)).mean()
    assert row["estimate"] == pytest.approx(expected) and row["estimate"] == pytest.approx(-0.09, abs=0.01)
    assert row["verdict"] == DECIDED and "more with a deep query" in row["answer"]
    assert row["setting"] == "model.deep_query: true; model.fine_pass: true"
    shares = {"A7": {"video": 0.5, "image": 0.36, "text": 0.14}}
    row = table_of(tmp_path, shares=shares, **levels)[0].loc["query depth x fine pass"]
    assert row["verdict"] == LIKELY and "saw different data: mixture" in row["answer"]


def test_the_question_in_front_is_judged_by_what_the_fine_pass_gains(tmp_path):
    found = [
        summary(f"Q1{end}", "ablation", 1.3, seed=seed, question_first=0.5) for end, seed in (("", 42), ("-s43", 43))
    ]
    found.append(summary("baseline", "ablation", 1.3))
    losses = orders_of("Q1") | orders_of("Q1-s43") | {("baseline", "coarse_fine", "own"): 1.3}
    tables = evaluation_of(tmp_path, losses)
    row = decisions(runs_of(found), *tables, *NO_GRID).set_index("sweep").loc["question first"]
    assert row["estimate"] == pytest.approx((1.32 - 1.38) - (1.39 - 1.40), abs=0.005) and row["n_seeds"] == 2
    assert (row["verdict"] == DECIDED) == (row["high"] < 0)
    expected = "data.question_first: 0.5" if row["high"] < 0 else "data.question_first: 0"
    assert row["setting"] == expected
    one = decisions(runs_of(found[:1]), *tables, *NO_GRID).set_index("sweep").loc["question first"]
    assert one["verdict"] == LIKELY


def grid_of(seeds, noise=0.0005):
    """The runs of the grid of analysis_cases, with seeds."""
    parts = []
    for seed in seeds:
        own = runs_of([one for one in study_summaries() if one["family"] == "grid"])
        factor = np.exp(noise * np.random.default_rng(seed).normal(size=len(own)))
        own["final.val_loss"] *= factor
        parts.append(own.assign(seed=seed, run=own["run"] + ("" if seed == 42 else f"-s{seed}")))
    return pd.concat(parts, ignore_index=True)


def test_the_grid_is_decided_by_the_mean_of_its_gaps():
    runs = grid_of((42, 43, 44))
    table = decisions(runs, *NOTHING, scaling_fits(runs), isoflop(runs)).set_index("sweep")
    gaps = gap(runs, *NOTHING)
    compute, parameters = table.loc["equal compute"], table.loc["equal parameters"]
    assert compute["estimate"] == pytest.approx(gaps["raw_percent"].mean())
    inside = [
        value
        for side in ("foveated", "baseline")
        for value in gaps.loc[~gaps[f"at_{side}_extrapolates"].astype(bool), f"at_{side}_percent"]
    ]
    assert 0 < len(inside) < 2 * len(gaps) and parameters["estimate"] == pytest.approx(np.mean(inside))
    for row in (compute, parameters):
        assert row["unit"] == "percent" and row["n_seeds"] == 3 and row["verdict"] == DECIDED
        worse = row["estimate"] > 0
        assert row["setting"] == f"model.architecture: {'multi_token' if worse else 'foveated'}"
        assert row["changes_default"] == worse
    one = grid_of((42,))
    row = decisions(one, *NOTHING, scaling_fits(one), isoflop(one)).set_index("sweep").loc["equal compute"]
    assert row["verdict"] == OPEN and np.isnan(row["low"])


def test_the_grid_is_decided_at_the_budgets_that_have_seeds():
    runs = grid_of((42, 43, 44))
    runs = runs[(runs["seed"] == 42) | (runs["budget"] == "C4")].reset_index(drop=True)
    table = decisions(runs, *NOTHING, scaling_fits(runs), isoflop(runs)).set_index("sweep")
    gaps = gap(runs, *NOTHING)
    for name in ("equal compute", "equal parameters"):
        row = table.loc[name]
        assert row["n_seeds"] == 3 and row["low"] < row["estimate"] < row["high"]
        assert row["runs"] == "3 pairs of the grid at C4" and "C1, C2, C3." in row["answer"]
    at_last = gaps[gaps["budget"] == "C4"]
    assert table.loc["equal compute", "estimate"] == pytest.approx(at_last["raw_percent"].mean())
    assert at_last["n_seeds"].eq(3).all() and at_last["raw_low"].notna().all()


def test_the_exponent_is_likely_at_most_and_refused_where_the_fit_is():
    runs = grid_of((42,))
    fits, minima = scaling_fits(runs), isoflop(runs)
    table = decisions(runs, *NOTHING, fits, minima).set_index("sweep")
    wanted = fits[(fits["fit"] == "iso-FLOP minima") & (fits["parameter"] == "N_opt_exponent")].set_index(
        "architecture"
    )
    assert set(wanted["identified"]) == {True, False}  # both cases are seen
    for architecture, fit in wanted.iterrows():
        row = table.loc[f"exponent, {architecture}"]
        if not fit["identified"]:
            assert row["verdict"] == OPEN and np.isnan(row["estimate"]) and fit["reason"] in row["answer"]
            continue
        assert row["verdict"] == LIKELY and row["estimate"] == fit["value"] and "do not extrapolate" in row["answer"]
        assert row["setting"].startswith("model.language: SmolLM2-")


def test_a_study_of_one_run_decides_nothing(tmp_path):
    table = decisions(runs_of(study_summaries()[:1]), *NOTHING, *NO_GRID)
    assert set(table["verdict"]) == {NOT_RUN} and len(table) > len(COMPARISONS.sweeps)
    write_table(table, tmp_path / "decisions.csv")
    table = read_table(tmp_path, "decisions")
    assert "the runs of none" in render("one", table) and "the runs of none" in opening(table)


def test_nothing_evaluated_still_gives_a_page(tmp_path):
    found = study_summaries()
    runs = runs_of(found)
    table = decisions(runs, *NOTHING, scaling_fits(runs), isoflop(runs))
    assert not {DECIDED} & set(table["verdict"])  # one seed, no evaluation
    write_table(table, tmp_path / "decisions.csv")
    page = render("x", read_table(tmp_path, "decisions"))
    assert "<svg" in page and "no interval" in page


@pytest.mark.parametrize(
    ("estimate", "confounded", "verdict"),
    [
        (Estimate(), "", OPEN),
        (Estimate(1, 0.5, 1.5, OVER_SEEDS, 2), "", DECIDED),
        (Estimate(1, 0.5, 1.5, OVER_SEEDS, 2), "mixture", LIKELY),
        (Estimate(1, 0.5, 1.5, OVER_VIDEOS, 1), "", LIKELY),
        (Estimate(1, 0.0, 2.0, OVER_SEEDS, 2), "", OPEN),  # touching zero is not excluding it
    ],
)
def test_the_verdict_of_an_estimate_alone(estimate, confounded, verdict):
    assert judge(estimate, confounded=confounded)["verdict"] == verdict


def test_a_setting_reads_back_as_yaml():
    run = pd.Series({"config.optim.lr.llm": 1e-5, "config.optim.freeze": '["llm", "dino"]',
                     "config.model.fine_pass": "True",
                     "config.data.share.video": 0.5, "config.data.share.text": 0.5, "config.data.share.image": np.nan,
                     "config.model.tokens_per_frame": 16, "architecture": "multi_token"})  # fmt: skip
    expected = {"optim.lr.llm": 1e-5, "optim.freeze": ["llm", "dino"], "model.fine_pass": True,
                "data.share": {"video": 0.5, "text": 0.5}, "model.tokens_per_frame": 16}  # fmt: skip
    for key, value in expected.items():
        assert yaml.safe_load(lines(run, [key])) == {key: value}
    assert lines(run, ["model.unknown"]) == ""
    assert lines(run.replace("multi_token", "foveated"), ["model.tokens_per_frame"]) == ""  # it always has one
