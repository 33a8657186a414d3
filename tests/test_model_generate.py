"""Generation against whole forward passes."""

import pytest

from fvlm.model.generate import generate
from tests.model_cases import ALL, by_argmax, joined, sample, tiny


@pytest.mark.parametrize("architecture, mode", ALL)
@pytest.mark.parametrize("frames, text, question", [(3, 6, 0), (0, 6, 0), (1, 1, 0), (0, 1, 0), (3, 6, 4), (2, 3, 3)])
def test_generation_equals_whole_passes(architecture, mode, frames, text, question):
    model, batch = tiny(architecture), sample(frames, text, seed=9, question=question)
    expected = by_argmax(model, batch, 7, mode)
    assert generate(model, batch, None, 7, mode) == expected
    end = expected[3]
    assert generate(model, batch, end, 7, mode) == expected[: expected.index(end)]


def test_generation_takes_the_inference_mode_and_one_sample():
    model, batch = tiny(), sample(3, 6, seed=9)
    assert generate(model, batch, None, 4) == generate(model, batch, None, 4, "autoregressive")
    with pytest.raises(ValueError, match="one sample"):
        generate(model, joined([batch, batch]), None, 4)
