"""The exported model is the readable definition: the fast training code computes the same, in every mode."""

from dataclasses import replace

import pytest
import torch

from benchmarks.obvious import exported, named_as_ours, normalised, outputs_of, padded
from fvlm.batch import Batch
from fvlm.model.build import build_model
from tests.model_cases import (
    ALL,
    EVERY,
    both_orders,
    configuration,
    exact,
    generated,
    joined,
    sample,
    sums_of,
    tiny,
    visual_tokens,
)

CASES = [(architecture, mode, {}) for architecture, mode in ALL]
CASES += [("foveated", mode, {"deep_query": False}) for mode in ("coarse_only", "coarse_fine", "autoregressive")]
CASES += [("foveated", "coarse_fine", {"fine_passes": 2, "deep_query": deep}) for deep in (True, False)]
TRAINED = [case for case in CASES if case[1] != "autoregressive"]
OF_ANOTHER_SIZE = {"position_side": 7}  # stored position embeddings
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def samples_of(architecture: str, most: int | None = None) -> list[Batch]:
    """Samples of every kind; of 49 visual tokens per frame, or with `most`, only short videos: the others take long."""
    most = most or (10 if architecture == "pixel_shuffle" else 64)
    return [part for part in both_orders() if int(part.frame_counts) <= most]


@pytest.mark.parametrize("architecture, mode, settings", CASES)
def test_losses_of_a_batch_are_those_of_the_exported_model(architecture, mode, settings):
    """Of text alone, one frame, many, a static image, both orders of question and video, padded on either side."""
    model = tiny(architecture, encoder=OF_ANOTHER_SIZE, **settings)
    reference, batch = exact(model), joined(samples_of(architecture))
    with torch.no_grad():
        output = model(batch, mode)
        for left in (False, True):
            inputs = padded(batch, reference, left)
            found = outputs_of(reference, inputs, mode)
            torch.testing.assert_close(output.loss_sum_B, sums_of(found.logits, inputs["labels"]), **EXACT)
            torch.testing.assert_close(output.loss_sum_B.sum() / output.count_B.sum(), found.loss, **EXACT)
    assert output.count_B.sum() > 50


@pytest.mark.parametrize("architecture, mode, settings", TRAINED)
def test_objective_and_gradients_are_those_of_the_exported_model(architecture, mode, settings):
    """With the coarse pass's own loss, where there is one."""
    model = tiny(architecture, lambda_coarse=0.3, **settings)
    reference, batch = exact(model), joined(samples_of(architecture))
    output = model(batch, mode)
    objective = output.objective_B.sum() / output.count_B.sum()
    found = outputs_of(reference, padded(batch, reference), mode).loss
    torch.testing.assert_close(objective, found, **EXACT)
    if mode == "coarse_fine":
        assert objective > 1.2 * output.loss_sum_B.sum() / output.count_B.sum()
    objective.backward()
    found.backward()
    theirs, total = named_as_ours(reference), 0
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (theirs[name].grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-9, atol=1e-12, msg=name)
            total += float(parameter.grad.norm())
    assert total > 1


@pytest.mark.parametrize("architecture, mode", ALL)
def test_captions_are_those_of_the_exported_model(architecture, mode):
    """A batch of different lengths, padded before the samples, with a cache and without one."""
    model = tiny(architecture)
    with torch.no_grad():
        model.llm.llama.embed_tokens.weight[0] = 0  # stands for frames, and is never the most likely token
    reference = exact(model)
    reference.config.frame_token_id = 0
    samples = [replace(part, token_ids=part.token_ids.clamp(min=1)) for part in samples_of(architecture, 10)]
    ours = [generated(model, part, None, 6, mode) for part in samples]
    inputs = padded(joined(samples), reference, left=True)
    given = {"input_ids": inputs["input_ids"].clamp(min=0), "attention_mask": inputs["attention_mask"]}
    pixels = normalised(inputs["frames"], reference.dtype)
    options = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": None, "pad_token_id": 0, "mode": mode}
    for cached in (True, False):
        found = reference.generate(**given, pixel_values=pixels, use_cache=cached, **options)
        assert found[:, given["input_ids"].shape[1] :].tolist() == ours
    assert len({tuple(answer) for answer in ours}) > 3


@pytest.mark.parametrize("architecture, mode", ALL)
def test_in_bfloat16_the_exported_model_agrees_roughly(architecture, mode):
    model, batch = build_model(configuration(architecture), 0), joined(samples_of(architecture))
    reference = exported(model).bfloat16()
    with torch.no_grad():
        inputs = padded(batch, reference)
        rough = outputs_of(reference, inputs, mode)
        expected = model(batch, mode).loss_sum_B
    assert rough.logits.dtype == torch.bfloat16
    torch.testing.assert_close(sums_of(rough.logits.float(), inputs["labels"]), expected, rtol=0.03, atol=0.1)


POOLED = [("multi_token", {"tokens_per_frame": tokens}) for tokens in (1, 4, 16)]
POOLED += [("multi_token", {"tokens_per_frame": 9, "encoder": {"patch": 8}})]  # windows that overlap
POOLED += [("pixel_shuffle", {"encoder": {"patch": patch}}) for patch in (4, 6, 8)]  # blocks of 4, resized, blocks of 1


@pytest.mark.parametrize("architecture, settings", POOLED)
def test_pooled_tokens_are_those_of_the_exported_model(architecture, settings):
    model, batch = tiny(architecture, **settings), sample(3, 6, seed=1)
    reference = exact(model)
    with torch.no_grad():
        found = outputs_of(reference, padded(batch, reference)).visual_tokens
        torch.testing.assert_close(visual_tokens(model, batch, "direct"), found, **EXACT)


@pytest.mark.parametrize("architecture, mode", EVERY)
def test_frames_and_places_that_do_not_fit_are_refused(architecture, mode):
    reference = exact(tiny(architecture))
    inputs = padded(joined([sample(3, 6, seed=1), sample(2, 5, seed=2)]), reference)
    with pytest.raises(ValueError, match=r"2 frames of \d+ each; make the inputs with the processor"):
        outputs_of(reference, {**inputs, "frames": inputs["frames"][:, :2]}, mode)


def test_an_unknown_mode_is_refused():
    reference = exact(tiny("multi_token"))
    with pytest.raises(ValueError, match="'coarse_fine'; this model has direct"):
        outputs_of(reference, padded(sample(2, 5, seed=1), reference), "coarse_fine")
