"""Generation against whole forward passes."""

import numpy as np
import pytest
import torch

from fvlm.errors import UserError
from fvlm.model.generate import Reading, most_likely, sampled
from fvlm.model.language import Cache
from tests.model_cases import ALL, EVERY, by_argmax, generated, sample, tiny, visual_tokens


@pytest.mark.parametrize("architecture, mode", ALL)
@pytest.mark.parametrize("frames, text, question", [(3, 6, 0), (0, 6, 0), (1, 1, 0), (0, 1, 0), (3, 6, 4), (2, 3, 3)])
def test_generation_equals_whole_passes(architecture, mode, frames, text, question):
    model, batch = tiny(architecture), sample(frames, text, seed=9, question=question)
    expected = by_argmax(model, batch, 7, mode)
    assert generated(model, batch, None, 7, mode) == expected
    end = expected[3]
    assert generated(model, batch, end, 7, mode) == expected[: expected.index(end)]


def answer_of(reading: Reading, ids: list[int], count: int = 5) -> list[int]:
    reading.read_text(ids)
    return [reading.next_token() for _ in range(count)]


@pytest.mark.parametrize("architecture, mode", EVERY)
@pytest.mark.parametrize("question", [0, 4])
def test_several_questions_read_the_frames_once_and_answer_as_alone(architecture, mode, question):
    """Also if a text begins as the one before it, or is the same, and if it holds the answer to the one before it."""
    model, batch = tiny(architecture), sample(3, 11, seed=9, question=question)
    before, behind = batch.token_ids[:question], batch.token_ids[question:].tolist()
    shown = visual_tokens(model, batch, mode)
    reading = Reading(model, mode, before)
    reading.take_frames(shown)
    entries = question + 3 * model.config.visual_tokens
    assert reading.length == entries
    texts = [behind, [*behind[:4], 7, 8], behind[:4], behind[:4], [5]]
    for ids in [*texts, behind + answer_of(reading, behind) + [9, 3]]:
        alone = Reading(model, mode, before)
        alone.take_frames(shown)
        assert answer_of(reading, ids) == answer_of(alone, ids)
        assert reading.length == entries + len(ids) + 4  # the last token of the answer is not read


@pytest.mark.parametrize("architecture, mode", [pair for pair in EVERY if pair[1] != "coarse_fine"])
@pytest.mark.parametrize("question", [0, 4])
def test_frames_that_come_one_by_one_are_read_as_all_at_once(architecture, mode, question):
    """An answer in between changes nothing."""
    model, batch = tiny(architecture), sample(5, 9, seed=9, question=question)
    before, behind = batch.token_ids[:question], batch.token_ids[question:].tolist()
    reading = Reading(model, mode, before)
    for number in range(5):
        reading.read_frames(model.encode(batch.frames[number : number + 1]))
        answer_of(reading, behind)
    assert answer_of(reading, behind, 7) == by_argmax(model, batch, 7, mode)


@torch.no_grad()
def test_many_tokens_behind_cached_ones_are_those_of_one_pass():
    model = tiny()
    tokens = model.llm.embed(sample(0, 700, seed=3).token_ids)[None]  # more than the cache has room for at first
    cache = Cache()
    parts = [model.llm.run_next(part, cache.length, cache) for part in tokens.split([1, 300, 399], 1)]
    assert cache.length == 700 and cache.bytes_per_token == 2 * 2 * 2 * 6 * 8  # keys, values; layers; heads; widths
    torch.testing.assert_close(torch.cat(parts, 1), model.llm.run_next(tokens, 0, Cache()))


def test_a_text_that_is_longer_than_the_positions_is_refused_and_an_answer_ends_there():
    model = tiny(language={"max_positions": 9})
    reading = Reading(model, "coarse_only")
    reading.read_frames(model.encode(sample(3, 1, seed=1).frames))
    with pytest.raises(UserError, match="10 tokens; the language model has 9 positions"):
        reading.read_text([1] * 7)
    assert answer_of(reading, [1] * 5)[2:] == [None] * 3


def test_draws_depend_on_the_seed_and_follow_the_weights():
    logits = torch.tensor([1.0, 3.0, -2.0, 2.0])
    draws = [[choose(logits) for _ in range(400)] for choose in (sampled(1.0, 1), sampled(1.0, 1), sampled(1.0, 2))]
    assert draws[0] == draws[1] != draws[2]
    shares = np.bincount(draws[0], minlength=4) / 400
    np.testing.assert_allclose(shares, logits.softmax(0), atol=0.08)
    assert {sampled(0.01, seed)(logits) for seed in range(9)} == {1} == {most_likely(logits)}
