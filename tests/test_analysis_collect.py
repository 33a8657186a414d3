"""Collecting: uneven runs, whole files only, and sums that can be checked by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, t

from fvlm.__main__ import main
from fvlm.analysis.collect import collect_curves, collect_evaluation
from fvlm.analysis.columns import RUN
from fvlm.analysis.files import read_table, replacing
from fvlm.errors import UserError


def summaries(folder, *contents):
    paths = []
    for content in contents:
        path = folder / content["run"] / "run_summary.json"
        path.parent.mkdir()
        path.write_text(json.dumps(content))
        paths.append(path)
    return paths


def test_a_field_that_one_run_lacks_is_an_empty_cell(tmp_path):
    one = {"run": "one", "final": {"val_loss": 1.5}, "deep_query": True, "frozen": ["llm"]}
    two = {"run": "two", "returncode": 0, "config": {"data": {"share": {"video": 0.6}}}, "flops_budget": None}
    out = tmp_path / "runs.csv"
    assert main(["collect", "runs", *map(str, summaries(tmp_path, one, two)), "--out", str(out)]) == 0
    table = read_table(tmp_path, "runs").set_index("run")
    assert list(pd.read_csv(out).columns[: len(RUN)]) == list(RUN)
    assert table.loc["two", "returncode"] == 0 and np.isnan(table.loc["one", "returncode"])
    assert table.loc["one", "final.val_loss"] == 1.5 and np.isnan(table.loc["two", "final.val_loss"])
    assert table.loc["one", "frozen"] == '["llm"]' and table.loc["two", "config.data.share.video"] == 0.6
    assert table["deep_query"].tolist() == [True, False]


def test_a_question_that_was_edited_after_the_training_is_the_new_one(tmp_path):
    runs = [{"run": name, "question": "Old?"} for name in ("A6", "A6-s43", "elsewhere")]
    (tmp_path / "study.yaml").write_text(
        "study: s\nresults: r\nbased_on: config.yaml\nablations: {A6: {question: 'New?'}}\n"
    )
    out, study = tmp_path / "runs.csv", str(tmp_path / "study.yaml")
    assert main(["collect", "runs", *map(str, summaries(tmp_path, *runs)), "--study", study, "--out", str(out)]) == 0
    assert pd.read_csv(out)["question"].tolist() == ["New?", "New?", "Old?"]


def test_a_list_of_files_can_come_from_a_file(tmp_path):
    paths = summaries(tmp_path, {"run": "one"}, {"run": "two"})
    (tmp_path / "list").write_text("".join(f"{path}\n" for path in paths))
    assert main(["collect", "runs", f"@{tmp_path / 'list'}", "--out", str(tmp_path / "runs.csv")]) == 0
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 2


def test_a_failure_leaves_the_old_table_and_no_half_one(tmp_path):
    out = tmp_path / "table.csv"
    out.write_text("old")
    with pytest.raises(RuntimeError), replacing(out) as beside:
        beside.write_text("ha")
        raise RuntimeError
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_curves_are_thinned_by_averaging(tmp_path):
    path = tmp_path / "run" / "metrics.csv"
    path.parent.mkdir()
    x = np.arange(1001.0)
    pd.DataFrame({"step": x, "samples": 8 * x, "flops": x, "train_loss": x, "loss_fine": np.nan}).to_csv(
        path, index=False
    )
    table = collect_curves([path], points=100)
    assert len(table) == 100 and (table["run"] == "run").all()
    assert table["train_loss"].is_monotonic_increasing
    assert table["samples"].to_numpy() == pytest.approx(8 * table["train_loss"].to_numpy())
    assert np.average(table["train_loss"]) == pytest.approx(500, rel=0.01)
    assert "attention_entropy" in table.columns  # promised by the catalog, even if no run has it


def test_curves_keep_the_sources_that_only_some_runs_have(tmp_path):
    paths = []
    for name in ("a", "b"):
        path = tmp_path / name / "validation.csv"
        path.parent.mkdir()
        path.write_text(f"step,samples,flops,val_loss,loss:{name}\n0,0,0,2,2\n1,8,9,1,1\n")
        paths.append(path)
    table = collect_curves(paths)
    assert len(table) == 4 and {"loss:a", "loss:b"} <= set(table.columns)
    assert table["loss:b"].isna().sum() == 2


def evaluation(path, run, losses, tokens, source="s", kind="video", **more):
    pd.DataFrame(
        {"run": run, "mode": "direct", "frames": "own", "source": source, "kind": kind,
         "key": [f"{source}-{i}" for i in range(len(losses))], **more, "loss_sum": losses, "tokens": tokens}
    ).to_csv(path, index=False)  # fmt: skip
    return path


def test_losses_are_weighted_by_tokens_and_add_up_over_sources(tmp_path):
    one = evaluation(tmp_path / "1.csv", "r", [10.0, 30.0], [10, 20])
    two = evaluation(tmp_path / "2.csv", "r", [5.0], [10], source="t", kind="image")
    losses, _ = collect_evaluation([one, two], replicates=10)
    losses = losses.set_index(["source", "kind"])
    assert losses.loc[("s", "video"), "loss"] == pytest.approx(40 / 30)
    assert losses.loc[("all", "all"), "loss"] == pytest.approx(45 / 40)
    assert losses.loc[("all", "image"), "loss"] == pytest.approx(0.5)
    assert losses.loc[("all", "all"), "samples"] == 3
    assert np.isnan(losses.loc[("t", "image"), "low"])  # one sample has no spread


def test_the_loss_without_the_end_of_answers_is_empty_for_files_without_it(tmp_path):
    new = {"loss_sum_without_end": [8.0, 24.0], "tokens_without_end": [9, 18]}
    paths = [evaluation(tmp_path / "1.csv", "new", [10.0, 30.0], [10, 20], **new)]
    paths.append(evaluation(tmp_path / "2.csv", "new", [5.0], [10], source="t", loss_sum_without_end=4.5,
                            tokens_without_end=9))  # fmt: skip
    paths.append(evaluation(tmp_path / "3.csv", "old", [10.0, 30.0], [10, 20]))
    table = tmp_path / "evaluation.csv"
    assert main(["collect", "evaluation", *map(str, paths), "--replicates", "10", "--out", str(table)]) == 0
    found = read_table(tmp_path, "evaluation").set_index(["run", "source"])
    assert found.loc[("new", "s"), "loss_without_end"] == pytest.approx(32 / 27)
    assert found.loc[("new", "all"), "loss_without_end"].to_numpy() == pytest.approx([36.5 / 36] * 3)
    assert found.loc["old", "loss_without_end"].isna().all() and found.loc["old", "loss"].notna().all()
    pd.read_csv(table).drop(columns="loss_without_end").to_csv(table, index=False)  # as an earlier version wrote it
    assert read_table(tmp_path, "evaluation")["loss_without_end"].isna().all()


def test_the_bootstrap_is_paired(tmp_path):
    """Two runs that differ by the same 0.1 nats on every sample differ by that in every replicate, too."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 50, size=60)
    base = rng.uniform(1, 3, size=60) * tokens
    paths = [
        evaluation(tmp_path / f"{name}.csv", name, base + shift * tokens, tokens)
        for name, shift in (("a", 0), ("b", 0.1))
    ]
    losses, draws = collect_evaluation(paths, replicates=50)
    values = draws[(draws["source"] == "all") & (draws["kind"] == "all")].set_index("run").filter(regex=r"^r\d+$")
    assert (values.loc["b"] - values.loc["a"]).to_numpy(float) == pytest.approx(np.full(50, 0.1))
    assert values.loc["a"].std() > 0.01
    spread = losses[(losses["source"] == "s") & (losses["run"] == "a")]["standard_error"].item()
    mean = base.sum() / tokens.sum()
    delta_method = np.sqrt(np.sum((base - mean * tokens) ** 2)) / tokens.sum()
    assert spread == pytest.approx(delta_method, rel=0.3)


def test_samples_of_one_video_are_drawn_together(tmp_path):
    """Ten captions of each video that all cost the same carry no more information than one of them."""
    rng = np.random.default_rng(0)
    tokens, per_video = np.full(300, 20), rng.uniform(1, 3, size=30)
    loss, video = np.repeat(per_video, 10) * tokens, np.repeat(np.arange(30), 10)
    alone = evaluation(tmp_path / "alone.csv", "r", per_video * 20, np.full(30, 20))
    many = evaluation(tmp_path / "many.csv", "r", loss, tokens, group=video)
    blind = evaluation(tmp_path / "blind.csv", "r", loss, tokens)
    (one, _), (clustered, _), (samples, _) = (
        collect_evaluation([path], replicates=400) for path in (alone, many, blind)
    )
    expected = per_video.std() / np.sqrt(30)
    assert one["standard_error"][0] == pytest.approx(expected, rel=0.15)
    assert clustered["standard_error"][0] == pytest.approx(expected, rel=0.15)
    assert samples["standard_error"][0] == pytest.approx(expected / np.sqrt(10), rel=0.15)
    assert clustered.loc[0, ["samples", "groups"]].tolist() == [300, 30]
    assert samples.loc[0, ["samples", "groups"]].tolist() == [300, 300]
    assert clustered["loss"][0] == pytest.approx(samples["loss"][0])


def test_a_difference_is_drawn_over_the_videos_of_both_runs(tmp_path):
    """The second run's table does not say which video a sample shows; the first one's does."""
    rng = np.random.default_rng(0)
    tokens, video = np.full(40, 10), np.arange(40) // 4
    base, shift = rng.uniform(1, 3, size=40), np.repeat(rng.normal(0.1, 0.05, size=10), 4)
    paths = [
        evaluation(tmp_path / "a.csv", "a", base * tokens, tokens, group=[f"v{i}" for i in video]),
        evaluation(tmp_path / "b.csv", "b", (base + shift) * tokens, tokens),
    ]
    losses, draws = collect_evaluation(paths, replicates=400)
    values = draws[(draws["source"] == "s")].set_index("run").filter(regex=r"^r\d+$")
    assert (losses["groups"] == 10).all()
    wider = np.sqrt(10 / 9) * t.ppf(0.975, 9) / norm.ppf(0.975)  # for few videos
    assert (values.loc["b"] - values.loc["a"]).std() == pytest.approx(wider * shift.std() / np.sqrt(10), rel=0.1)


@pytest.mark.parametrize("count", [3, 8, 40])
def test_few_videos_have_an_interval_as_wide_as_students(tmp_path, count):
    """Plain percentiles of 8 videos would be a fifth narrower."""
    errors = np.random.default_rng(count).normal(size=count)
    losses = 3 + 0.5 * (errors - errors.mean()) / errors.std()
    path = evaluation(tmp_path / "1.csv", "r", 10 * losses, np.full(count, 10))
    row = collect_evaluation([path], replicates=4000)[0].iloc[0]
    low, high = t.interval(0.95, count - 1, losses.mean(), losses.std(ddof=1) / np.sqrt(count))
    assert row["high"] - row["low"] == pytest.approx(high - low, rel=0.1)


def test_a_loss_of_two_videos_is_never_below_zero(tmp_path):
    path = evaluation(tmp_path / "1.csv", "r", [10.0, 50.0], [10, 10])
    losses, draws = collect_evaluation([path], replicates=100)
    assert losses["low"].min() > 0 and draws.filter(regex=r"^r\d+$").min(axis=None) > 0


def test_orders_are_cells_of_their_own(tmp_path):
    """A table without the column has the video first; both orders are drawn alike; texts are not visual."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 50, size=30)
    base = rng.uniform(1, 3, size=30) * tokens
    paths = [
        evaluation(tmp_path / "1.csv", "r", base, tokens),
        evaluation(tmp_path / "2.csv", "r", base - 0.1 * tokens, tokens, order="question_first"),
        evaluation(tmp_path / "3.csv", "r", [90.0, 70.0], [9, 7], source="t", kind="text"),
    ]
    losses, draws = collect_evaluation(paths, replicates=50)
    keyed = losses.set_index(["order", "source", "kind"])["loss"]
    assert keyed["video_first", "all", "visual"] == pytest.approx(base.sum() / tokens.sum())
    assert keyed["question_first", "all", "visual"] == pytest.approx(base.sum() / tokens.sum() - 0.1)
    assert keyed["video_first", "all", "all"] == pytest.approx((base.sum() + 160) / (tokens.sum() + 16))
    values = draws[draws["kind"] == "visual"].set_index("order").filter(regex=r"^r\d+$")
    difference = (values.loc["question_first"] - values.loc["video_first"]).to_numpy(float)
    assert difference == pytest.approx(np.full(50, -0.1))


def test_one_video_has_no_interval(tmp_path):
    losses, _ = collect_evaluation([evaluation(tmp_path / "1.csv", "r", [1.0, 2.0], [1, 1], group=7)], replicates=10)
    assert losses[["standard_error", "low", "high"]].isna().all(axis=None) and (losses["samples"] == 2).all()


def test_a_sample_evaluated_twice_is_refused(tmp_path):
    path = evaluation(tmp_path / "1.csv", "r", [1.0], [1])
    with pytest.raises(UserError, match="occurs twice"):
        collect_evaluation([path, path])


def test_no_evaluation_gives_tables_without_rows():
    losses, draws = collect_evaluation([])
    assert losses.empty and draws.empty and "loss" in losses.columns
