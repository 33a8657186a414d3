"""What a batch keeps where, and whose frames a sample sees in the controls."""

import pytest
import torch

from fvlm.model.build import build_model
from tests.model_cases import ALL, both_orders, configuration, joined, mixed, sample


@pytest.mark.parametrize("architecture, mode", ALL)
def test_only_frames_and_token_ids_move_and_the_model_reads_nothing_back(architecture, mode):
    """A meta tensor has no values: whatever is read back from it is an error."""
    batch = joined(both_orders())
    moved = batch.to("meta")
    assert moved.frames.is_meta and moved.token_ids.is_meta
    for name in ("frame_index", "frame_counts", "token_counts", "loss_mask", "question_counts"):
        assert getattr(moved, name) is getattr(batch, name)
    with torch.device("meta"):
        model = build_model(configuration(architecture), seed=0)
    output = model(moved, mode)
    assert output.loss_sum_B.is_meta and output.count_B.device.type == "cpu"


def test_samples_with_frames_see_those_of_another_sample():
    samples = mixed()
    batch = joined(samples)
    other = batch.with_frames_of_neighbour()
    owner = torch.repeat_interleave(torch.arange(len(samples)), torch.tensor([len(part.frames) for part in samples]))
    seen = owner[other.frame_index].split(other.frame_counts.tolist())
    for i, (shown, own) in enumerate(zip(seen, samples, strict=True)):
        assert len(shown.unique()) == (len(own.frames) > 0)  # one sample's frames, none for a text
        assert (shown != i).all()
    shown = torch.cat([part.unique() for part in seen])
    assert sorted(shown.tolist()) == [1, 2, 3, 4, 5]  # each sample's frames once
    assert other.frame_counts[shown.new_tensor([1, 2, 3, 4, 5])].tolist() == [4, 3, 64, 6, 1]
    assert other.frames is batch.frames and other.token_ids is batch.token_ids


@pytest.mark.parametrize("frames", [(), (5,), (0, 0), (0, 5, 0)])
def test_without_two_samples_with_frames_there_is_no_neighbour(frames):
    samples = [sample(count, 7, seed) for seed, count in enumerate(frames)]
    batch = joined(samples) if samples else joined([sample(0, 7, 0)]).without_frames()
    assert batch.with_frames_of_neighbour() is None
