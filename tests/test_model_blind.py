"""The blind model: a language model alone, which takes no notice of frames."""

from dataclasses import replace

import torch

from tests.model_cases import both_orders, joined, tiny


def test_frames_and_their_place_change_nothing():
    model, batch = tiny("blind"), joined(both_orders())
    output = model(batch, with_attention=True)
    assert output.entropy_P is None and output.coarse_sum_B is None
    others = replace(batch, frames=255 - batch.frames)
    last = replace(batch, question_counts=torch.zeros_like(batch.question_counts))
    for seen in (batch.without_frames(), others, last):
        again = model(seen)
        assert torch.equal(again.loss_sum_B, output.loss_sum_B) and torch.equal(again.count_B, output.count_B)
