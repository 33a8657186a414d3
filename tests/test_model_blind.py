"""The blind model: a language model alone, which takes no notice of frames."""

from dataclasses import replace

import pytest
import torch

from fvlm.config import schema
from fvlm.train.optim import make_optimizer
from tests.model_cases import both_orders, joined, tiny


def optim(**changes) -> schema.Optim:
    settings = {
        "batch_size": 4, "lr": {"connector": 1e-3, "dino": 1e-4, "llm": 1e-4}, "final_lr": None,
        "schedule": "constant", "warmup": 0.0, "weight_decay": 0.01, "clip": 1.0, "betas": (0.9, 0.999), "ema": None,
        "dpo_beta": 0.1, "freeze": (),
    }  # fmt: skip
    return schema.Optim(**{**settings, **changes})


def test_frames_and_their_place_change_nothing():
    model, batch = tiny("blind"), joined(both_orders())
    output = model(batch, with_attention=True)
    assert output.entropy_P is None and output.coarse_sum_B is None
    others = replace(batch, frames=255 - batch.frames)
    last = replace(batch, question_counts=torch.zeros_like(batch.question_counts))
    for seen in (batch.without_frames(), others, last):
        again = model(seen)
        assert torch.equal(again.loss_sum_B, output.loss_sum_B) and torch.equal(again.count_B, output.count_B)


@pytest.mark.parametrize("frozen", [(), ("dino",), ("dino", "connector")])
def test_groups_without_parameters_are_frozen_and_optimised_as_any(frozen):
    model = tiny("blind")
    model.freeze(frozen)
    optimizer = make_optimizer(model.parameter_groups(), optim(freeze=frozen))
    assert {group["group"] for group in optimizer.param_groups} == {"llm"}
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    batch = joined(both_orders())
    before = model(batch).objective_B.sum()
    before.backward()
    optimizer.step()
    assert float(model(batch).objective_B.detach().sum()) < float(before.detach())
