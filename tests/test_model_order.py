"""Video first and question first, and looking again: what queries depend on, and where the modes must agree."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fvlm.model.packing import count_up
from tests.model_cases import (
    EVERY,
    SEEING,
    VOCABULARY,
    both_orders,
    joined,
    language_states,
    mixed,
    sample,
    sequence_by_hand,
    tiny,
    visual_tokens,
    visual_tokens_by_hand,
)

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def first_frames(batch) -> torch.Tensor:
    return torch.from_numpy(count_up(batch.frame_counts.numpy()) == 0)


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


@pytest.mark.parametrize("samples", [mixed, both_orders])
def test_the_pass_that_predicts_queries_needs_no_text_behind_the_frames(samples):
    model, batch = tiny(), joined(samples())
    plan, text = model.plan(batch), model.llm.embed(batch.token_ids)
    coarse = model.visual_tokens(batch, text, plan, "coarse_only")[0]
    whole = model.hidden(coarse, text, plan)
    queries = model.connector.llm_to_query(whole[plan.rows.cells[: len(coarse)] - 1])
    initial = first_frames(batch) & torch.from_numpy(np.repeat(plan.question_B == 0, plan.frame_counts))
    queries[initial] = model.connector.q_init
    torch.testing.assert_close(model.predict(coarse, text, plan), queries)
    assert 0 < initial.sum() < len(batch.frame_index)


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


def test_modes_agree_on_first_frames_in_both_orders():
    model, batch = tiny(), joined(both_orders())
    fine, turn = (visual_tokens(model, batch, mode) for mode in ("coarse_fine", "autoregressive"))
    first = first_frames(batch)
    torch.testing.assert_close(fine[first], turn[first])
    assert not torch.allclose(fine[~first], turn[~first])
    for question in (0, 4):
        one = sample(1, 9, seed=8, question=question)
        losses = [model(one, mode).loss_sum_B for mode in ("coarse_fine", "autoregressive")]
        torch.testing.assert_close(*losses, **CLOSE)


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


def test_the_cache_gives_what_whole_sequences_give_for_all_samples_abreast():
    model, samples = tiny(), both_orders()
    found = visual_tokens(model, joined(samples), "autoregressive")
    with torch.no_grad():
        by_hand = [visual_tokens_by_hand(model, part, "autoregressive") for part in samples if part.frame_counts.any()]
    # transformers computes its norms in float32, hence the tolerance
    torch.testing.assert_close(found, torch.cat(by_hand), rtol=1e-4, atol=1e-5)
    alone = [visual_tokens(model, part, "autoregressive") for part in samples if part.frame_counts.any()]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-9, atol=1e-12)


# --- looking again ---


def test_a_further_pass_reads_with_queries_from_the_pass_before():
    batch = joined(both_orders())
    once, twice = tiny(), tiny(fine_passes=2)
    plan, text = once.plan(batch), once.llm.embed(batch.token_ids)
    first = once.visual_tokens(batch, text, plan, "coarse_fine")[0]
    again, _ = once.read(once.predict(first, text, plan), once.encode(batch.frames), plan.visits, False)
    found, coarse, *_ = twice.visual_tokens(batch, text, plan, "coarse_fine")
    torch.testing.assert_close(found, again)
    assert not torch.allclose(found, first)
    assert torch.equal(coarse, once.visual_tokens(batch, text, plan, "coarse_only")[0])


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
    sequence = sequence_by_hand(model, batch, mode) if frames else model.llm.embed(batch.token_ids)
    logits = model.llm.logits(language_states(model, sequence))
    expected = sum(F.cross_entropy(logits[at], batch.token_ids[i]) for i, at in zip(scored, places, strict=True))
    output = model(batch, mode)
    torch.testing.assert_close(output.loss_sum_B[0], expected, **CLOSE)
    assert output.count_B.tolist() == [len(scored)]


def test_a_question_s_first_token_has_nothing_before_it():
    batch = replace(sample(3, 10, seed=3, question=4), loss_mask=torch.ones(10, dtype=torch.bool))
    assert tiny()(batch).count_B.tolist() == [9]


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
