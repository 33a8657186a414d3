"""Evaluation: every look is taken over the same samples, and 'another sample's frames' are another video's."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from fvlm.data.batches.loader import Steps
from fvlm.evaluate.losses import Scored, batches_by_source, held_out_samples, identity, score
from fvlm.evaluate.maps import fixed_videos, maps_of
from fvlm.model.build import build_model
from tests.loader_cases import make_results, preference_run, run_of


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make_results(tmp_path_factory.mktemp("evaluate") / "results")


def scored(run, study) -> list[dict]:
    """The rows of a run's evaluation, by a model that has learnt nothing."""
    model, steps = build_model(run.model, 0).eval(), held_out_samples(run, study)
    with torch.no_grad():
        return [
            row
            for members, videos in batches_by_source(steps)
            for row in score(run, model, steps.batch(members), study, videos)
        ]


def looks_of(rows: list[dict]) -> dict[tuple, dict[str, dict]]:
    found = defaultdict(dict)
    for row in rows:
        assert found[row["order"], row["mode"], row["frames"]].setdefault(row["key"], row) is row
    return found


def test_a_run_with_questions_first_is_scored_in_both_orders_over_the_same_samples(results):
    run, study = run_of(results, **{"data.question_first": 0.5})
    looks = looks_of(scored(run, study))
    assert {order for order, _, _ in looks} == {"video_first", "question_first"} and len(looks) == 2 * 5
    tokens = [{key: row["tokens"] for key, row in rows.items()} for rows in looks.values()]
    assert all(one == tokens[0] for one in tokens) and len(tokens[0]) > 12
    for mode, frames in {(mode, frames) for _, mode, frames in looks}:
        both = [looks[order, mode, frames] for order in ("video_first", "question_first")]
        for key in both[0]:
            one, other = (rows[key]["loss_sum"] for rows in both)
            same = frames == "none" or both[0][key]["kind"] == "text"
            assert (abs(one - other) <= 1e-5 * one) == same, (mode, frames, key)


def test_a_run_with_the_video_first_is_scored_in_that_order_alone(results):
    looks = looks_of(scored(*run_of(results)))
    assert {order for order, _, _ in looks} == {"video_first"} and len(looks) == 5


def test_the_video_is_first_as_if_there_were_no_other_order(results):
    """The rows of one order do not depend on whether the other is scored too."""
    alone = looks_of(scored(*run_of(results)))
    both = looks_of(scored(*run_of(results, **{"data.question_first": 0.5})))
    for look, rows in alone.items():
        for key, row in rows.items():
            assert row["loss_sum"] == pytest.approx(both[look][key]["loss_sum"], rel=1e-5)


def test_a_blind_run_says_the_same_whatever_is_shown(results):
    looks = looks_of(scored(*run_of(results, **{"model.architecture": "blind", "data.question_first": 1.0})))
    video_first = {look[1:] for look in looks if look[0] == "video_first"}
    assert video_first == {("direct", "own"), ("blind", "none"), ("direct", "other")}
    for key in (rows := looks["video_first", "direct", "own"]):
        for look in looks.values():
            assert look[key]["loss_sum"] == rows[key]["loss_sum"] and look[key]["entropy"] is None


def test_a_preference_run_is_evaluated_on_its_chosen_answers(results):
    run, study = preference_run(results)
    steps = held_out_samples(run, study)
    assert isinstance(steps, Steps) and steps.loss == "answers" and not steps.order.rejected_tokens.any()
    looks = looks_of(scored(run, study))
    index = steps.corpus.indices[0]
    answers = dict(zip(index.keys.tolist(), index.answer_tokens.tolist(), strict=True))
    assert len(looks) == 5
    for rows in looks.values():
        assert len(rows) == len(steps.order) > 4
        assert all(row["tokens"] == answers[key] and row["kind"] == "preference" for key, row in rows.items())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_maps_of_the_fixed_videos(results, share):
    run, study = run_of(results, **{"data.question_first": share})
    model, side = build_model(run.model, 0).eval(), round(run.model.encoder.patches**0.5)
    steps = fixed_videos(run, study, 2)
    for k in range(len(steps)):
        (batch,) = steps[k]
        assert bool(batch.question_counts[0]) == bool(share)
        with torch.no_grad():
            maps = maps_of(batch, model(batch, "coarse_fine", with_attention=True), side)
        count = len(batch.frame_index)
        assert maps["frames"].shape == (count, 224, 224, 3) and maps["entropy_fine"].shape == (count,)
        for name in ("fine", "coarse"):
            assert maps[name].shape == (count, side, side) and np.isfinite(maps[name]).all()
        assert (maps["entropy_fine"] > 0).all()
    assert len(steps) == 2


def test_what_was_scored_is_kept_whole_and_for_the_same_evaluation_alone(tmp_path):
    path, rows = tmp_path / "scored.jsonl", [[{"loss_sum": 0.1 + 0.2, "entropy": None}], [{"loss_sum": 1 / 3}]]
    scored = Scored(path, "one")
    for batch in rows:
        scored.append(batch)
    with path.open("a") as file:
        file.write('{"step": 3, "rows": [{"lo')  # as a kill leaves it
    again = Scored(path, "one")
    assert again.batches == rows and again.rows == [*rows[0], *rows[1]]
    again.append(rows[0])
    assert len(Scored(path, "one")) == 3
    assert len(Scored(path, "other")) == 0 and len(Scored(path, "one")) == 0


def test_an_evaluation_is_known_by_its_weights_its_samples_and_its_precision(results, tmp_path):
    run, study = run_of(results)
    steps = held_out_samples(run, study)
    (tmp_path / "model").mkdir()
    for name in ("run.json", "best.safetensors"):
        (tmp_path / "model" / name).write_text("one")
    found = [identity(run, study, tmp_path, steps, torch.device("cpu"))]
    elsewhere = run.model_copy(update={"train": run.train.model_copy(update={"precision": "bfloat16"})})
    found.append(identity(elsewhere, study, tmp_path, steps, torch.device("cuda")))
    steps.corpus.rows[0] = steps.corpus.rows[0][1:]
    found.append(identity(run, study, tmp_path, steps, torch.device("cpu")))
    (tmp_path / "model/best.safetensors").write_text("other")
    found.append(identity(run, study, tmp_path, steps, torch.device("cpu")))
    assert len(set(found)) == 4
    assert identity(run, study, tmp_path, steps, torch.device("cpu")) == found[-1]
