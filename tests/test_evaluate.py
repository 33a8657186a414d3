"""Scoring: each held-out sample once per mode and kind of frames, with the loss that it has alone."""

import math
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
import torch

from fvlm.batch import Batch
from fvlm.data.batches.loader import Steps
from fvlm.data.shards.text import END
from fvlm.evaluate.losses import batches_by_source, held_out_samples, score
from tests.evaluate_cases import PICTURES, QUESTIONS, VIDEOS, has_frames, make_held_out, model_of, run_of
from tests.loader_cases import preference_run

FOVEATED = ("coarse_only", "coarse_fine", "autoregressive")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make_held_out(tmp_path_factory.mktemp("evaluate") / "results")


@torch.no_grad()
def scored(run, study, model=None) -> tuple[Steps, list[dict]]:
    model, steps = model or model_of(run), held_out_samples(run, study)
    end, rows = steps.tokenizer.token_to_id(END), []
    for places, videos in batches_by_source(steps):
        rows += score(run, model, steps.batch(places), study, videos, end)
    return steps, rows


def by_look(rows: list[dict]) -> dict[tuple, dict[str, dict]]:
    """(order, mode, frames) -> key -> row; fails if a sample is scored twice."""
    looks = defaultdict(dict)
    for row in rows:
        look = looks[row["order"], row["mode"], row["frames"]]
        assert row["key"] not in look
        look[row["key"]] = row
    return looks


def showing(batch: Batch, other: Batch) -> Batch:
    """One sample's text with the frames of another sample."""
    return replace(batch, frames=other.frames, frame_index=other.frame_index, frame_counts=other.frame_counts)


@pytest.mark.parametrize(
    ("make_run", "settings", "modes"),
    [
        (run_of, {"data.question_first": 0.3}, FOVEATED),
        (run_of, {"model.fine_pass": False}, FOVEATED),
        (run_of, {"model.architecture": "multi_token"}, ("direct",)),
        (run_of, {"model.architecture": "blind"}, ("direct",)),
        (preference_run, {}, FOVEATED),
    ],
    ids=["question first", "coarse only", "pooled tokens", "no frames", "preferences"],
)
@torch.no_grad()
def test_each_loss_is_that_of_the_sample_alone(results, make_run, settings, modes):
    """Own frames in every mode, no frames, and the frames of a sample of another video; texts have no frames."""
    run, study = make_run(results, **settings)
    model = model_of(run)
    steps, rows = scored(run, study, model)
    trained = run.model.training_mode
    alone = {batch.keys[0]: batch for batch in (steps.batch([i]) for i in range(len(steps.order)))}
    video = {row["key"]: row["group"] for row in rows}
    orders = ["video_first", "question_first"] if run.data.question_first else ["video_first"]
    looks = by_look(rows)
    assert set(looks) == {
        *((order, mode, "own") for order in orders for mode in modes),
        *((order, "blind", "none") for order in orders),
        *((order, trained, "other") for order in orders),
    }
    for (order, mode, frames), samples in looks.items():
        assert samples.keys() == alone.keys()  # each sample once
        batches = {k: batch.video_first() if order == "video_first" else batch for k, batch in alone.items()}
        for i, (key, row) in enumerate(samples.items()):
            batch = batches[key]
            assert row["tokens"] == int(batch.loss_mask.sum()) and row["source"] == batch.sources[0]
            if frames == "none":
                candidates = [(batch.without_frames(), trained)]
            elif frames == "own" or not batch.frame_counts[0]:
                candidates = [(batch, mode)]
            elif i % 3:  # a third of the samples is checked, since each is compared with all samples of other videos
                continue
            else:
                candidates = (
                    (showing(batch, other), trained)
                    for name, other in batches.items()
                    if other.sources == batch.sources and video[name] != video[key]
                )
            losses = ((content, mode, model(content, mode).loss_sum_B.item()) for content, mode in candidates)
            alike = (found for found in losses if row["loss_sum"] == pytest.approx(found[2], rel=1e-9))
            content, mode_of, _ = next(alike, (None, "", 0.0))
            assert content is not None, (key, mode, frames)
            if i % 6:
                continue
            ends = content.loss_mask & (content.token_ids == steps.tokenizer.token_to_id(END))
            without = model(replace(content, loss_mask=content.loss_mask & ~ends), mode_of)
            assert row["loss_sum_without_end"] == pytest.approx(without.loss_sum_B.item(), rel=1e-9)
            assert row["tokens_without_end"] == int(without.count_B) == row["tokens"] - int(ends.sum())
            assert ends.any()  # each sample has an answer, and its end


def test_batches_hold_each_sample_once_and_no_video_twice(results):
    run, study = run_of(results)
    steps = held_out_samples(run, study)
    batches = batches_by_source(steps)
    assert Counter(place for places, _ in batches for place in places) == Counter(range(len(steps.order)))
    for places, videos in batches:
        assert len(set(videos)) == len(videos) == len(places)
        assert len(set(steps.order.source[places])) == 1
    counted = Counter(video for _, videos in batches for video in videos)
    assert Counter(counted.values())[QUESTIONS] >= VIDEOS // 2  # the case is there: videos with several samples
    frames = steps.corpus.indices[1].frames[steps.corpus.rows[1]].tolist()
    assert set(frames) == {1, 3} and len(frames) > PICTURES // 2  # single images and sets of three


def test_losses_and_entropies_are_in_nats(results):
    """Zero weights give equal logits and equal attention: ln V per scored token, and ln of patches and CLS token."""
    run, study = run_of(results)
    model = model_of(run)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for row in scored(run, study, model)[1]:
        for end in ("", "_without_end"):
            assert row[f"loss_sum{end}"] == pytest.approx(row[f"tokens{end}"] * math.log(run.model.language.vocabulary))
        looked = row["frames"] == "own" and has_frames(row["key"])
        assert row["entropy"] == (pytest.approx(math.log(model.config.encoder.patches + 1)) if looked else None)
