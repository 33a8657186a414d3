"""Layers that are computed again: the same loss and gradients, in the memory that was predicted."""

import weakref

import pytest
import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fvlm.costs import memory
from fvlm.costs.flops import Trained
from fvlm.model.build import build_model
from tests.model_cases import ALL, configuration, joined, mixed, tiny
from tests.test_memory import ALONE, NARROW_135M, PACKED, fused, load_of

__all__ = ["fused"]  # a fixture


def gradients(model, batch, recompute: bool):
    model.recompute_layers(recompute)
    model.zero_grad()
    loss = model(batch).objective_B.sum()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("architecture", "frozen"), [
    *((architecture, ()) for architecture in dict(ALL)), ("foveated", ("dino",)), ("foveated", ("llm",)),
])  # fmt: skip
def test_loss_and_gradients_are_the_same(architecture, frozen):
    model, batch = tiny(architecture), joined(mixed()[:4])
    model.freeze(frozen)
    (loss, kept), (again, made_again) = (gradients(model, batch, recompute) for recompute in (False, True))
    assert torch.equal(loss, again) and kept.keys() == made_again.keys() and kept
    assert all(torch.equal(kept[name], made_again[name]) for name in kept)


class Live(TorchDispatchMode):
    """Bytes of all storages that are made inside and still there, and the most there were."""

    def __init__(self, known):
        super().__init__()
        self.seen = {tensor.untyped_storage()._cdata: None for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in _pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage) -> None:
        key = storage._cdata
        if key in self.seen:
            return
        size = storage.nbytes()
        self.seen[key] = weakref.ref(storage, lambda _: self._drop(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _drop(self, key: int, size: int) -> None:
        del self.seen[key]
        self.now -= size


def used_bytes(changes: dict, recompute: bool, precision: str) -> tuple[int, int]:
    """Most bytes beside weights and gradients while one batch is trained on, and what is predicted for it."""
    changes = dict(changes)
    batch, freeze = joined(changes.pop("batch", ALONE)), changes.pop("freeze", ())
    model = build_model(configuration(**changes), seed=0)
    model.freeze(freeze)
    model.recompute_layers(recompute)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    held = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    live = Live(held)
    with live:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            output = model(batch)
        objective = output.objective_B.sum()
        del output
        objective.backward()
    item = 2 if precision == "bfloat16" else 4
    load, language = load_of(model, batch), model.config.language
    predicted = memory.Pass(model.config, Trained.all_but(freeze), item, load, recompute).peak_bytes()
    # as in predicted_bytes
    logits = min(memory.CHUNK, load.text_tokens * language.vocabulary) + language.vocabulary * language.width
    return live.peak, predicted + (8 + item) * logits


LARGE = {**NARROW_135M, "encoder": {**NARROW_135M["encoder"], "layers": 6},
         "language": {**NARROW_135M["language"], "layers": 8}}  # fmt: skip
CASES = {
    "baseline": {},
    "pooled": {"architecture": "multi_token"},
    "blind": {"architecture": "blind", "batch": PACKED},
    "frozen encoder": {"freeze": ("dino",)},
    "frozen language model": {"freeze": ("llm",), "batch": PACKED},
}
SEEN = [("baseline", "float32"), *((case, "bfloat16") for case in CASES)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("case", "precision"), SEEN)
def test_a_step_needs_hardly_more_than_predicted_and_not_much_less(case, precision, recompute, fused):
    used, predicted = used_bytes({**LARGE, **CASES[case]}, recompute, precision)
    assert 0.95 < predicted / used < (1.5 if recompute else 1.15)


def test_layers_that_are_computed_again_need_less():
    kept, again = (used_bytes(LARGE, recompute, "float32")[0] for recompute in (False, True))
    assert again < 0.6 * kept
