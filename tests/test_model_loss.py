"""What the loss may depend on, in every mode."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.obvious import outputs_of, padded
from fvlm.errors import UserError
from fvlm.model.build import build_model
from fvlm.model.packing import pack
from tests.model_cases import (
    ALL,
    EVERY,
    VOCABULARY,
    both_orders,
    configuration,
    exact,
    joined,
    mixed,
    sample,
    sums_of,
    tiny,
    visual_tokens,
)

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("architecture, mode", ALL)
def test_loss_of_a_sample_is_the_same_in_any_batch(architecture, mode, deep):
    model, samples = tiny(architecture, deep_query=deep), both_orders()
    with torch.no_grad():
        alone = torch.cat([model(part, mode).loss_sum_B for part in samples])
        together = model(joined(samples), mode)
        order = [4, 9, 2, 6, 11, 0, 8, 1, 10, 5, 3, 7]
        assert sorted(order) == list(range(len(samples)))
        shuffled = model(joined([samples[i] for i in order]), mode)
    torch.testing.assert_close(together.loss_sum_B, alone, **CLOSE)
    torch.testing.assert_close(shuffled.loss_sum_B, alone[order], **CLOSE)
    assert together.count_B[order].tolist() == shuffled.count_B.tolist()


@pytest.mark.parametrize("architecture, mode", [place for place in ALL if place[1] != "autoregressive"])
def test_gradients_of_a_batch_are_those_of_its_samples(architecture, mode):
    """Each parameter's, whatever the neighbours and the padding."""
    model, samples = tiny(architecture), both_orders()
    model(joined(samples), mode).objective_B.sum().backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for part in samples:
        loss = model(part, mode).objective_B.sum()
        if loss.requires_grad:
            loss.backward()
    alone = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert together.keys() == alone.keys() and len(alone) > 10
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("question", [0, 4])
@pytest.mark.parametrize("architecture, mode", EVERY)
def test_a_later_frame_changes_no_earlier_token(architecture, mode, question):
    model, batch = tiny(architecture, fine_passes=2), sample(5, 8, seed=3, question=question)
    frames = batch.frames.clone()
    frames[3] = 255 - frames[3]
    changed = replace(batch, frames=frames)
    with torch.no_grad():
        before, after = (visual_tokens(model, b, mode).unflatten(0, (5, -1)) for b in (batch, changed))
    assert torch.equal(before[:3], after[:3])
    assert not torch.allclose(before[3], after[3])
    assert torch.allclose(before[4], after[4]) == (mode in ("coarse_only", "direct"))


@pytest.mark.parametrize("deep", [True, False])
def test_autoregressive_attention_comes_in_the_order_of_the_batch(deep):
    model, samples = tiny(deep_query=deep), both_orders()
    with torch.no_grad():
        together = model(joined(samples), "autoregressive", with_attention=True).fine
        alone = [model(part, "autoregressive", with_attention=True).fine for part in samples if part.frame_counts.sum()]
    torch.testing.assert_close(together.patches, torch.cat([a.patches for a in alone]))
    torch.testing.assert_close(together.entropy, torch.cat([a.entropy for a in alone]))


@pytest.mark.parametrize("architecture, mode", EVERY)
def test_a_repeated_frame_equals_copies_of_it(architecture, mode):
    model, image = tiny(architecture), sample(4, 12, seed=3, static=True)
    copies = replace(image, frames=image.frames.expand(4, -1, -1, -1), frame_index=torch.arange(4))
    others = [sample(3, 5, seed=4), sample(0, 5, seed=5)]
    once, each = (model(joined([part, *others]), mode).loss_sum_B for part in (image, copies))
    torch.testing.assert_close(once, each, **CLOSE)


@pytest.mark.parametrize("architecture, mode", ALL)
def test_blind_loss_is_that_of_the_text(architecture, mode):
    model, batch = tiny(architecture), joined(both_orders())
    blind = batch.without_frames()
    output = model(blind, mode)
    reference = exact(model)
    inputs = padded(blind, reference)
    expected = sums_of(outputs_of(reference, inputs).logits, inputs["labels"])
    torch.testing.assert_close(output.loss_sum_B, expected, **CLOSE)
    assert output.entropy_P is None
    same = torch.allclose(output.loss_sum_B[1:6], model(batch, mode).loss_sum_B[1:6])
    assert same == (architecture == "blind")


def test_a_token_with_nothing_before_it_is_not_scored():
    model = tiny()
    text, video = (replace(s, loss_mask=torch.ones(6, dtype=torch.bool)) for s in
                   (sample(0, 6, seed=1), sample(2, 6, seed=2)))  # fmt: skip
    asked = replace(video, question_counts=torch.tensor([4]))
    assert model(joined([text, video, asked])).count_B.tolist() == [5, 6, 5]
    single = replace(sample(0, 1, seed=1), loss_mask=torch.ones(1, dtype=torch.bool))
    output = model(single)
    assert output.count_B.tolist() == [0] and output.loss_sum_B.tolist() == [0.0]
    output.objective_B.sum().backward()


def test_only_a_boolean_loss_mask_is_taken():
    batch = sample(1, 6, seed=1)
    with pytest.raises(ValueError, match="loss mask"):
        replace(batch, loss_mask=batch.loss_mask.float())


@pytest.mark.parametrize("architecture, mode", EVERY)
def test_attention_is_watched_without_changing_the_loss(architecture, mode):
    model, batch = tiny(architecture), joined(mixed()[:4])
    plain, watched = model(batch, mode), model(batch, mode, with_attention=True)
    assert torch.equal(plain.loss_sum_B, watched.loss_sum_B) and plain.entropy_P is None
    if mode == "direct":
        assert watched.entropy_P is None
        return
    assert watched.entropy_P.shape == (len(batch.frame_index),)
    assert (watched.coarse is not None) == (mode != "autoregressive")
    assert (watched.fine is not None) == (mode != "coarse_only")
    assert (watched.fine or watched.coarse).patches.shape == (len(batch.frame_index), 16)


def test_coarse_loss_is_that_of_the_coarse_mode():
    batch = joined(mixed())
    plain, weighted = tiny(), tiny(lambda_coarse=0.3)
    asked = plain(batch, with_coarse_loss=True)
    coarse = plain(batch, "coarse_only")
    torch.testing.assert_close(asked.coarse_sum_B, coarse.loss_sum_B)
    torch.testing.assert_close(coarse.coarse_sum_B, coarse.loss_sum_B)
    assert torch.equal(asked.objective_B, asked.loss_sum_B) and not asked.coarse_sum_B.requires_grad
    assert plain(batch).coarse_sum_B is None
    both = weighted(batch)
    torch.testing.assert_close(both.objective_B, asked.loss_sum_B + 0.3 * asked.coarse_sum_B)


@pytest.mark.parametrize("architecture, mode", ALL)
def test_bfloat16_and_float32_agree(architecture, mode):
    model, batch = build_model(configuration(architecture, fine_passes=2), 0), joined(both_orders())
    exact = model(batch, mode)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch, mode)
    assert rough.loss_sum_B.dtype == exact.loss_sum_B.dtype == torch.float32
    torch.testing.assert_close(rough.loss_sum_B, exact.loss_sum_B, rtol=0.02, atol=0.05)
    rough.objective_B.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_many_scored_tokens_are_taken_in_chunks(monkeypatch):
    model, batch = tiny(), joined(mixed())
    whole = model(batch).loss_sum_B
    monkeypatch.setattr("fvlm.model.losses.CHUNK", 5 * VOCABULARY)
    torch.testing.assert_close(model(batch).loss_sum_B, whole)


def test_rows_hold_every_token_once():
    visual, text = np.array([0, 3, 8, 0, 2]), np.array([4, 1, 0, 0, 2])
    for question in (np.zeros_like(text), np.array([0, 1, 0, 0, 1])):
        rows = pack(visual, text, question, torch.device("cpu"))
        assert (rows.count, rows.width) == (3, 8)
        assert len(set(rows.cells.tolist())) == 20


def test_a_sample_longer_than_the_positions_is_refused():
    with pytest.raises(UserError, match="sample 3 has 6 visual and 8 text tokens"):
        tiny(language={"max_positions": 13})(sample(6, 8, seed=3))


@pytest.mark.parametrize("architecture", ["multi_token", "blind"])
def test_unknown_mode_is_refused(architecture):
    with pytest.raises(UserError, match=f"'coarse_fine'.*{architecture}.*direct"):
        tiny(architecture)(sample(1, 4, seed=1), "coarse_fine")
