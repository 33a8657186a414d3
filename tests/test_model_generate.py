"""Generation against whole forward passes."""

import pytest
import torch

from fvlm.model.generate import generate
from tests.model_cases import EVERY, joined, sample, tiny


def by_whole_passes(model, batch, count: int, mode: str) -> list[int]:
    visual = model.visual_tokens(batch, model.plan(batch), mode)[0]
    tokens = torch.cat([visual, model.llm.embed(batch.token_ids)])
    found = []
    for _ in range(count):
        hidden = model.llm.llama(inputs_embeds=tokens[None], use_cache=False).last_hidden_state[0, -1]
        found.append(int(model.llm.logits(hidden).argmax()))
        tokens = torch.cat([tokens, model.llm.embed(torch.tensor(found[-1:]))])
    return found


@pytest.mark.parametrize("architecture, mode", EVERY)
@pytest.mark.parametrize("frames, text", [(3, 6), (0, 6), (1, 1), (0, 1)])
def test_generation_equals_whole_passes(architecture, mode, frames, text):
    model, batch = tiny(architecture), sample(frames, text, seed=9)
    expected = by_whole_passes(model, batch, 7, mode)
    assert generate(model, batch, None, 7, mode) == expected
    end = expected[3]
    assert generate(model, batch, end, 7, mode) == expected[: expected.index(end)]


def test_generation_takes_the_inference_mode_and_one_sample():
    model, batch = tiny(), sample(3, 6, seed=9)
    assert generate(model, batch, None, 4) == generate(model, batch, None, 4, "autoregressive")
    with pytest.raises(ValueError, match="one sample"):
        generate(model, joined([batch, batch]), None, 4)
