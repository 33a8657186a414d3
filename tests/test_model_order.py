"""Video first and question first, and looking again: what queries depend on, and where the modes must agree."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.model_cases import (
    EVERY,
    SEEING,
    VOCABULARY,
    both_orders,
    joined,
    logits_of,
    mixed,
    sample,
    tiny,
    visual_tokens,
)

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


# --- what a query depends on ---


@pytest.mark.parametrize("question", [0, 4])
@pytest.mark.parametrize("mode", [mode for _, mode in SEEING])
def test_only_a_question_before_the_frames_changes_where_queries_look(mode, question):
    """Two by two: fine and autoregressive tokens depend on a question that stands first, and nothing else does."""
    model, batch = tiny(), sample(5, 9, seed=3, question=question)
    other = replace(batch, token_ids=torch.cat([(batch.token_ids[:4] + 1) % VOCABULARY, batch.token_ids[4:]]))
    with torch.no_grad():
        before, after = (visual_tokens(model, asked, mode) for asked in (batch, other))
    if question and mode != "coarse_only":
        assert ((before - after).abs().amax(1) > 1e-6).all()  # of every frame, the first one included
    else:
        assert torch.equal(before, after)


@pytest.mark.parametrize("mode", [mode for _, mode in SEEING])
def test_the_text_behind_the_frames_never_changes_where_queries_look(mode):
    model, batch = tiny(fine_passes=2), sample(5, 9, seed=3, question=4)
    other = replace(batch, token_ids=torch.cat([batch.token_ids[:4], (batch.token_ids[4:] + 1) % VOCABULARY]))
    assert torch.equal(visual_tokens(model, batch, mode), visual_tokens(model, other, mode))


def test_without_a_question_first_nothing_more_is_computed():
    model, batch = tiny(), joined(mixed())
    plan = model.plan(batch)
    assert plan.questions is None and not plan.question_B.any()
    assert plan.visual_rows.count * plan.visual_rows.width == 64 * 2  # the longest video, and all others in a row


def test_a_text_without_frames_has_no_order():
    model, text = tiny(), sample(0, 9, seed=1)
    asked = replace(text, question_counts=torch.tensor([5]))
    plan = model.plan(asked)
    assert plan.question_B.tolist() == [0] and plan.questions is None
    assert torch.equal(model(asked).loss_sum_B, model(text).loss_sum_B)


def test_the_order_changes_the_loss():
    for architecture, mode in EVERY:
        model, batch = tiny(architecture), sample(3, 9, seed=3)
        asked = replace(batch, question_counts=torch.tensor([4]))
        assert abs(float((model(batch, mode).loss_sum_B - model(asked, mode).loss_sum_B).detach())) > 1e-6


# --- where the modes agree ---


@pytest.mark.parametrize("deep", [True, False])
def test_autoregressive_tokens_are_those_that_a_fine_pass_leaves_as_they_are(deep):
    """The features of one mode through the path of the other: the same queries, and so the same features."""
    model, batch = tiny(deep_query=deep), joined(both_orders())
    plan, text = model.plan(batch), model.llm.embed(batch.token_ids)
    with torch.no_grad():
        turn = model.visual_tokens(batch, text, plan, "autoregressive")[0]
        again, _ = model.read(model.predict(turn, text, plan), model.encode(batch.frames), plan.visits, False)
    torch.testing.assert_close(again, turn)


@pytest.mark.parametrize("question", [0, 4])
def test_as_many_fine_passes_as_frames_are_the_autoregressive_mode(question):
    """Each pass makes one more frame exact: the first after one, and frame t when all before it are."""
    batch = sample(4, 9, seed=3, question=question)
    turn = visual_tokens(tiny(), batch, "autoregressive")
    for passes in (1, 2, 3, 4):
        fine = visual_tokens(tiny(fine_passes=passes), batch, "coarse_fine")
        exact = torch.isclose(fine, turn, rtol=1e-9, atol=1e-12).all(1)
        assert exact.tolist() == [True] * passes + [False] * (4 - passes)


def test_samples_abreast_are_read_in_turn_as_each_alone():
    model, samples = tiny(), both_orders()
    found = visual_tokens(model, joined(samples), "autoregressive")
    alone = [visual_tokens(model, part, "autoregressive") for part in samples if part.frame_counts.any()]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-9, atol=1e-12)


# --- looking again ---


def test_further_passes_change_no_other_mode_and_not_the_coarse_loss():
    batch = joined(both_orders())
    once, thrice = tiny(lambda_coarse=0.5), tiny(lambda_coarse=0.5, fine_passes=3)
    for mode in ("coarse_only", "autoregressive"):
        assert torch.equal(once(batch, mode).loss_sum_B, thrice(batch, mode).loss_sum_B)
    assert torch.equal(once(batch).coarse_sum_B, thrice(batch).coarse_sum_B)
    assert not torch.allclose(once(batch).loss_sum_B, thrice(batch).loss_sum_B)


# --- what is scored from where ---

# frames, question, the scored tokens of a text of 10, and the places in the sequence that predict them
BOUNDARIES = {
    "first token behind the frames": (3, 0, [0], [2]),
    "next one": (3, 0, [1], [3]),
    "question's second token": (3, 4, [1], [0]),
    "question's last token": (3, 4, [3], [2]),
    "first token of the answer, behind the last visual token": (3, 4, [4], [6]),
    "last token": (3, 4, [9], [11]),
    "last token, video first": (3, 0, [9], [11]),
    "answers of two turns": (3, 0, [4, 5, 8, 9], [6, 7, 10, 11]),
    "answers of two turns, question first": (3, 4, [4, 5, 8, 9], [6, 7, 10, 11]),
    "one frame": (1, 4, [3, 4], [2, 4]),
    "all of the text before the frames": (3, 10, [9], [8]),
    "text alone": (0, 0, [1, 9], [0, 8]),
}


@pytest.mark.parametrize("mode", [mode for _, mode in SEEING])
@pytest.mark.parametrize("case", BOUNDARIES)
def test_a_token_is_predicted_from_the_one_before_it(case, mode):
    frames, question, scored, places = BOUNDARIES[case]
    mask = torch.zeros(10, dtype=torch.bool)
    mask[scored] = True
    batch = replace(sample(frames, 10, seed=3, question=question), loss_mask=mask)
    model = tiny()
    logits = logits_of(model, batch, mode)
    expected = sum(F.cross_entropy(logits[at], batch.token_ids[i]) for i, at in zip(scored, places, strict=True))
    output = model(batch, mode)
    torch.testing.assert_close(output.loss_sum_B[0], expected, **CLOSE)
    assert output.count_B.tolist() == [len(scored)]


@pytest.mark.parametrize("architecture, mode", EVERY)
def test_the_longest_of_everything_mixes_in_one_batch(architecture, mode):
    model = tiny(architecture)
    samples = [
        sample(64, 500, seed=1, question=300),
        sample(0, 500, seed=2),
        sample(1, 3, seed=3),
        sample(1, 3, seed=4, question=2),
        sample(64, 500, seed=5),
        sample(64, 1, seed=6, question=1),
    ]
    with torch.no_grad():
        together = model(joined(samples), mode).loss_sum_B
        alone = torch.cat([model(part, mode).loss_sum_B for part in samples])
    torch.testing.assert_close(together, alone, **CLOSE)
