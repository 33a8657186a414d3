"""Comparisons: ranking, factorial, gap, modes. Numbers that can be worked out by hand."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from fvlm.analysis.collect import collect_evaluation, flatten
from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.compare.bootstrap import OVER_SEEDS, OVER_VIDEOS, Cell, t_interval
from fvlm.analysis.compare.factorial import factorial
from fvlm.analysis.compare.gap import gap
from fvlm.analysis.compare.modes import GAIN, modes, question_order, token_efficiency
from fvlm.analysis.compare.ranking import ablations
from fvlm.analysis.compare.runs import ComparedRuns
from tests.analysis_cases import COMPARISONS, study_summaries, summary

ablations, factorial, gap, token_efficiency = (
    partial(table, comparisons=COMPARISONS) for table in (ablations, factorial, gap, token_efficiency)
)
NOTHING = pd.DataFrame(columns=COLUMNS["evaluation"]), pd.DataFrame(columns=COLUMNS["bootstrap"])


def runs_of(found):
    return pd.DataFrame([flatten(one) for one in found])


def evaluation_of(tmp_path, losses):
    """losses: (run, mode, frames[, order]) -> mean loss; the same 50 samples everywhere, half video, half image."""
    rng = np.random.default_rng(0)
    shift, tokens = rng.normal(scale=0.3, size=50), rng.integers(10, 40, size=50)
    path = tmp_path / "evaluation.csv"
    pd.concat([
        pd.DataFrame({"run": run, "mode": mode, "frames": frames, "order": order[0] if order else None,
                      "source": ["v"] * 25 + ["i"] * 25,
                      "kind": ["video"] * 25 + ["image"] * 25, "key": [f"k{i}" for i in range(50)],
                      "loss_sum": (loss + shift + 0.01 * rng.normal(size=50)) * tokens, "tokens": tokens})
        for (run, mode, frames, *order), loss in losses.items()
    ]).to_csv(path, index=False)  # fmt: skip
    return collect_evaluation([path], replicates=300)


def test_factorial_interval_is_paired_over_samples(tmp_path):
    found = [one for one in study_summaries() if one["run"] in ("baseline", "A1", "A6", "A7")]
    mode = {"A6": "coarse_only", "A7": "coarse_only"}
    level = {"baseline": 1.30, "A1": 1.28, "A6": 1.36, "A7": 1.40}
    tables = evaluation_of(tmp_path, {(run, mode.get(run, "coarse_fine"), "own"): loss for run, loss in level.items()})
    table = factorial(runs_of(found), *tables)
    own = table[table["measure"] == "evaluation"].set_index("effect")
    assert own["estimate"].to_numpy() == pytest.approx([-0.01, -0.09, 0.06], abs=0.01)
    assert (own["interval"] == OVER_VIDEOS).all()
    assert (own["high"] - own["low"] < 0.02).all()  # samples differ by 0.3 nats, which cancels
    assert table[table["measure"] == "best"]["low"].isna().all()  # one seed


def test_seeds_give_a_t_interval_of_paired_differences():
    table = ablations(runs_of(study_summaries(seeds=(42, 43, 44))), *NOTHING).set_index("run")
    assert (table["n_seeds"] == 3).all()
    row = table.loc["LR2"]
    runs = runs_of(study_summaries(seeds=(42, 43, 44))).set_index("run")["best.val_loss"]
    pairs = np.array([runs[f"LR2{seed}"] - runs[f"baseline{seed}"] for seed in ("", "-s43", "-s44")])
    assert row["difference"] == pytest.approx(pairs.mean())
    assert (row["low"], row["high"]) == pytest.approx(t_interval(pairs))
    assert row["interval"] == OVER_SEEDS


def seeds_of(tmp_path, **levels):
    """Runs and evaluation of ablations given by base name, one level per seed from 42, in the mode coarse_fine."""
    named = {
        f"{base}{f'-s{seed}' * (seed > 42)}": (seed, level)
        for base, values in levels.items()
        for seed, level in enumerate(values, 42)
    }
    runs = runs_of([summary(run, "ablation", level, seed=seed) for run, (seed, level) in named.items()])
    return runs, *evaluation_of(tmp_path, {(run, "coarse_fine", "own"): level for run, (_, level) in named.items()})


def test_evaluated_seeds_are_paired_and_one_alone_is_drawn_over_videos(tmp_path):
    tables = seeds_of(tmp_path, baseline=[1.30, 1.34, 1.29], LR2=[1.28, 1.33, 1.26], LR3=[1.31])
    losses = tables[1][tables[1]["kind"] == "all"].set_index("run")["loss"]
    table = ablations(*tables).set_index("run")
    row = table.loc["LR2"]
    pairs = np.array([losses[f"LR2{seed}"] - losses[f"baseline{seed}"] for seed in ("", "-s43", "-s44")])
    assert row["difference"] == pytest.approx(pairs.mean()) and row["n_seeds"] == 3
    assert (row["low"], row["high"]) == pytest.approx(t_interval(pairs))
    assert (row["interval"], row["measure"]) == (OVER_SEEDS, "evaluation loss")
    alone = table.loc["LR3"]
    assert alone["difference"] == pytest.approx(losses["LR3"] - losses["baseline"]) and alone["n_seeds"] == 1
    assert alone["low"] < alone["difference"] < alone["high"] and alone["interval"] == OVER_VIDEOS
    assert list(table.index).count("baseline") == 1 and not table.index.str.contains("-s").any()


def test_the_number_of_seeds_is_that_of_the_interval(tmp_path):
    tables = seeds_of(tmp_path, baseline=[1.30], A6=[1.32, 1.34])
    for table in (token_efficiency(*tables), ablations(*tables)):
        row = table.set_index("run").loc["A6"]
        assert row["n_seeds"] == 1 and row["interval"] == OVER_VIDEOS


def test_a_level_is_the_mean_over_seeds_and_drawn_over_videos(tmp_path):
    tables = seeds_of(tmp_path, baseline=[1.30, 1.34], LR2=[1.28])
    row = modes(*tables).set_index("run").loc["baseline"]
    losses = tables[1][tables[1]["kind"] == "all"].set_index("run")["loss"]
    assert row["loss"] == pytest.approx(losses[["baseline", "baseline-s43"]].mean()) and row["n_seeds"] == 2
    assert row["high"] - row["low"] > 0.1  # samples differ by 0.3 nats; seeds by 0.04


def test_runs_are_compared_with_what_they_may_be_compared_with():
    table = ablations(runs_of(study_summaries()), *NOTHING).set_index("run")
    assert table.loc["A8b", "compared_with"] == "A8a"
    assert table.loc["A8b", "best_difference"] == pytest.approx(0.02)
    assert np.isnan(table.loc["B2", "best_difference"])  # its validation data are not the baseline's
    assert table.loc["D1", "data_differs"] == "mixture" and table.loc["LR2", "data_differs"] == ""
    assert (table["n_seeds"] == 1).all() and table["low"].isna().all()


def test_images_only_is_compared_on_images(tmp_path):
    found = [one for one in study_summaries() if one["run"] in ("baseline", "B2")]
    tables = evaluation_of(tmp_path, {("baseline", "coarse_fine", "own"): 1.3, ("B2", "direct", "own"): 1.5})
    losses = tables[0].set_index(["run", "source", "kind"])["loss"]
    row = ablations(runs_of(found), *tables).set_index("run").loc["B2"]
    expected = losses["B2", "all", "image"] - losses["baseline", "all", "image"]
    assert row["difference"] == pytest.approx(expected)
    assert row["low"] < expected < row["high"]


def test_runs_that_held_out_other_samples_are_not_compared(tmp_path):
    """Of X, without texts in its mixture; its seeds are pooled, and its loss is still told."""
    share = {"video": 0.7, "image": 0.3}
    found = [
        *(summary(f"baseline{s}", "ablation", 1.3, seed=seed) for s, seed in (("", 42), ("-s43", 43))),
        *(summary(f"X{s}", "ablation", 1.2, seed=seed, share=share) for s, seed in (("", 42), ("-s43", 43))),
        summary("B4", "ablation", 1.2, architecture="multi_token", tokens=4, share=share),
    ]
    seen = {(one["run"], "direct" if one["run"] == "B4" else "coarse_fine", "own"): 1.3 for one in found}
    evaluation_of(tmp_path, seen)
    rows = pd.read_csv(tmp_path / "evaluation.csv")
    texts = rows.assign(source="t", kind="text", loss_sum=rows["tokens"])
    rows = pd.concat([rows, texts[texts["run"].str.startswith("baseline")]])
    rows.to_csv(tmp_path / "evaluation.csv", index=False)
    runs, tables = runs_of(found), collect_evaluation([tmp_path / "evaluation.csv"], replicates=50)
    row = ablations(runs, *tables).set_index("run").loc["X"]
    assert row[["difference", "evaluation_difference", "best_difference", "low"]].isna().all()
    assert row["note"] == "other held-out samples or scored tokens than baseline: not compared" and row["n_seeds"] == 2
    assert row["evaluation_loss"] > 1 and row["best_val_loss"] == pytest.approx(1.2)
    study = ComparedRuns(runs, *tables)
    assert abs(study.difference("X", "baseline", Cell(kind="visual")).value) < 0.02  # these are the same
    assert token_efficiency(runs, *tables)["run"].tolist() == ["baseline"]
    assert ablations(runs, *NOTHING).set_index("run").loc["X", "note"] == row["note"]


def test_a_loss_per_pair_is_ranked_with_no_loss_per_token():
    found = [summary("baseline", "ablation", 1.3), summary("P1", "ablation", 0.6, scored="preference")]
    found.append(summary("P2", "ablation", 0.5, scored="preference", architecture="multi_token"))
    assert ablations(runs_of(found), *NOTHING)["run"].tolist() == ["baseline"]
    assert token_efficiency(runs_of(found), *NOTHING)["run"].tolist() == ["baseline"]


def test_a_validation_of_other_tokens_is_not_compared():
    found = [summary("baseline", "ablation", 1.3), summary("X", "ablation", 1.1, scored="answers")]
    row = ablations(runs_of(found), *NOTHING).set_index("run").loc["X"]
    assert np.isnan(row["difference"]) and row["data_differs"] == "scored tokens"


def test_the_validation_of_an_adopted_run_is_not_compared_with_one_of_this_project():
    """Its held-out samples and scored tokens are others, whatever configuration it was adopted for."""
    found = study_summaries()
    adopted = [one | {"origin": "adopted"} if one["run"] in ("A1", "A6", "135M-C1-F") else one for one in found]
    runs = runs_of(adopted)
    table = ablations(runs, *NOTHING).set_index("run")
    assert np.isnan(table.loc["A6", "difference"]) and table.loc["A6", "data_differs"] == "origin"
    assert table.loc["A6", "note"] and not np.isnan(table.loc["LR2", "difference"])
    assert factorial(runs, *NOTHING).empty and not factorial(runs_of(found), *NOTHING).empty
    noted = gap(runs, *NOTHING)["note"].str.contains("validated on other samples")
    assert (noted == (gap(runs, *NOTHING)["budget"] == "C1")).all()
    assert not gap(runs_of(found), *NOTHING)["note"].str.contains("validated on other samples").any()
    alike = runs_of([one | {"origin": "adopted"} for one in found])
    assert not np.isnan(ablations(alike, *NOTHING).set_index("run").loc["A6", "difference"])


def test_gap_table_has_a_raw_row_for_the_ablation_pair():
    runs = runs_of(study_summaries())
    table = gap(runs, *NOTHING)
    assert len(table) == 12 + 1
    spent = runs.assign(flops=runs["flops"] * (1 - 1e-11 * runs["params_total"]))  # larger models spend a little less
    pd.testing.assert_frame_equal(gap(spent, *NOTHING), table)
    pair = table[table["family"] == "ablation"].iloc[0]
    assert pair["raw_percent"] == pytest.approx(100 * (1.364 / 1.334 - 1))
    assert "one size" in pair["note"] and np.isnan(pair["at_foveated_percent"])
    assert table["note"].str.contains("the baseline's curve below its smallest size").sum() == 4


def test_seeds_of_the_grid_give_the_gap_an_interval():
    found = [one for one in study_summaries() if one["size"] == "135M" and one["budget"] == "C1"]
    runs = runs_of(found)
    runs.loc[runs["letter"] == "F", "final.val_loss"], runs.loc[runs["letter"] == "B", "final.val_loss"] = 2.2, 2.0
    more = runs.assign(run=runs["run"] + "-s43", seed=43)
    more.loc[more["letter"] == "F", "final.val_loss"] = 2.3
    (row,) = gap(pd.concat([runs, more], ignore_index=True), *NOTHING).to_dict("records")
    assert row["raw_percent"] == pytest.approx(12.5) and row["n_seeds"] == 2
    assert (row["raw_low"], row["raw_high"]) == pytest.approx(t_interval(np.array([10.0, 15.0])))


ORDERS = {  # mode: video first, question first
    "coarse_only": (1.40, 1.39),
    "coarse_fine": (1.38, 1.32),
    "autoregressive": (1.39, 1.34),
}


def orders_of(run, shift=0.0):
    places = [(mode, order) for mode in ORDERS for order in ("video_first", "question_first")]
    return {
        (run, mode, "own", order): ORDERS[mode][order == "question_first"] + shift * (mode == "coarse_fine")
        for mode, order in places
    }


def test_question_order_is_two_by_two_with_its_interaction(tmp_path):
    runs = runs_of([summary("Q1", "ablation", 1.3), summary("baseline", "ablation", 1.3)])
    losses = orders_of("Q1") | {("baseline", "coarse_fine", "own"): 1.3}
    table = question_order(runs, *evaluation_of(tmp_path, losses)).set_index("mode")
    assert set(table["run"]) == {"Q1"} and (table["interval"] == OVER_VIDEOS).all()
    for mode, (video, question) in ORDERS.items():
        assert table.loc[mode, "difference"] == pytest.approx(question - video, abs=0.01)
        assert table.loc[mode, "difference"] == pytest.approx(
            table.loc[mode, "question_first"] - table.loc[mode, "video_first"]
        )
    fine, coarse, gain = (table.loc[name] for name in ("coarse_fine", "coarse_only", GAIN))
    assert gain["difference"] == pytest.approx(fine["difference"] - coarse["difference"])
    assert gain["video_first"] == pytest.approx(fine["video_first"] - coarse["video_first"])
    assert gain["low"] < gain["difference"] < gain["high"] < 0


def test_question_order_of_pooled_tokens_has_their_one_pass_and_no_interaction(tmp_path):
    losses = {("B1", "direct", "own", order): loss for order, loss in (("video_first", 1.3), ("question_first", 1.2))}
    table = question_order(runs_of([summary("B1", "ablation", 1.3)]), *evaluation_of(tmp_path, losses))
    assert table["mode"].tolist() == ["direct"] and table["difference"].iloc[0] == pytest.approx(-0.1, abs=0.01)


def test_question_order_over_seeds(tmp_path):
    found = [summary("Q1", "ablation", 1.3), summary("Q1-s43", "ablation", 1.3, seed=43)]
    tables = evaluation_of(tmp_path, orders_of("Q1") | orders_of("Q1-s43", shift=0.02))
    row = question_order(runs_of(found), *tables).set_index("mode").loc["coarse_fine"]
    own = tables[0][tables[0]["kind"] == "visual"].set_index(["run", "mode", "order"])["loss"]
    pairs = np.array([
        own[run, "coarse_fine", "question_first"] - own[run, "coarse_fine", "video_first"] for run in ("Q1", "Q1-s43")
    ])  # fmt: skip
    assert (row["low"], row["high"]) == pytest.approx(t_interval(pairs))
    assert (row["interval"], row["n_seeds"]) == (OVER_SEEDS, 2)


def test_modes_are_relative_to_the_trained_one(tmp_path):
    losses = {
        ("stage1", "coarse_fine", "own"): 2.0,
        ("stage1", "autoregressive", "own"): 2.01,
        ("stage1", "coarse_fine", "other"): 3.0,
        ("stage1", "blind", "none"): 2.8,
    }
    table = modes(runs_of(study_summaries()[:1]), *evaluation_of(tmp_path, losses)).set_index(["mode", "frames"])
    assert table.loc[("autoregressive", "own"), "gap_percent"] == pytest.approx(0.5, abs=0.2)
    assert table.loc[("blind", "none"), "gap_percent"] == pytest.approx(40, abs=3)
    assert np.isnan(table.loc[("coarse_fine", "own"), "gap_percent"])
    assert table.loc[("blind", "none"), "gap_low"] > 0


def test_tokens_per_frame_start_with_the_blind_evaluation(tmp_path):
    found = [one for one in study_summaries() if one["run"] in ("baseline", "B1")]
    found.append(summary("P4", "ablation", 1.35, architecture="multi_token", tokens=4))
    losses = {
        ("baseline", "coarse_fine", "own"): 1.3,
        ("baseline", "blind", "none"): 1.9,
        ("B1", "direct", "own"): 1.2,
        ("P4", "direct", "own"): 1.25,
    }
    table = token_efficiency(runs_of(found), *evaluation_of(tmp_path, losses))
    assert table["tokens_per_frame"].tolist() == [0, 1, 4, 16]
    assert table["flops_per_sample"].isna().tolist() == [True, False, False, False]
    assert table.loc[0, "difference"] == pytest.approx(0.6, abs=0.01)
    assert table.loc[0, "low"] < table.loc[0, "difference"] < table.loc[0, "high"]
    without = token_efficiency(runs_of(found), *NOTHING)
    assert without["tokens_per_frame"].tolist() == [1, 4, 16]
    assert (without["measure"] == "best validation loss").all()


def test_a_run_trained_blind_takes_the_place_of_the_blind_evaluation(tmp_path):
    found = [one for one in study_summaries() if one["run"] in ("baseline", "B0")]
    losses = {
        ("baseline", "coarse_fine", "own"): 1.3,
        ("baseline", "blind", "none"): 1.9,
        ("B0", "direct", "own"): 1.6,
    }
    table = token_efficiency(runs_of(found), *evaluation_of(tmp_path, losses))
    assert table["run"].tolist() == ["B0", "baseline"] and table["tokens_per_frame"].tolist() == [0, 1]
    assert table.loc[0, "loss"] == pytest.approx(1.6, abs=0.2) and table.loc[0, "flops_per_sample"] > 0
