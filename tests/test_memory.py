"""Predicted memory against what a forward pass really keeps, and the refusal of runs that do not fit."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from fvlm import memory
from fvlm.config import load_study, merged, read_yaml
from fvlm.errors import UserError
from fvlm.flops import Trained
from fvlm.model import attention
from fvlm.model.build import build_model
from fvlm.plan import plan_rows, plan_text
from tests.model_cases import VOCABULARY, configuration, joined, sample

CONFIG = Path(__file__).resolve().parents[1] / "config"

# --- what a forward pass keeps for the backward pass ---

SMALL = {
    "encoder": {"width": 128, "layers": 2, "heads": 4, "image": 112},
    "language": {"width": 96, "ffn": 256, "layers": 2, "heads": 6, "kv_heads": 2, "vocabulary": 1000},
    "query_dim": 64,
}
NARROW_135M = {  # DINOv2-small and SmolLM2-135M with fewer layers and words
    "encoder": {"width": 384, "layers": 3, "heads": 6, "image": 112, "position_side": 37},
    "language": {"width": 576, "ffn": 1536, "layers": 4, "heads": 9, "kv_heads": 3, "vocabulary": 4096},
    "query_dim": 384,
}
ALONE = [sample(6, 40, i, image=112) for i in range(4)]  # equal lengths: every sample has a row of its own
PACKED = [
    *(sample(frames, text, i, image=112) for i, (frames, text) in enumerate([(8, 120), (3, 30), (5, 60), (0, 45)])),
    sample(4, 20, 9, static=True, image=112),
]
CASES = {
    "baseline": {},
    "packed rows and a still image": {"batch": PACKED},
    "both passes scored": {"lambda_coarse": 0.5},
    "shallow query": {"deep_query": False},
    "one pass": {"fine_pass": False},
    "shallow query, one pass": {"deep_query": False, "fine_pass": False},
    "pooled": {"architecture": "multi_token"},
    "pixel shuffle, packed": {"architecture": "pixel_shuffle", "batch": PACKED},
    "connector alone": {"freeze": ("llm", "dino")},
    "frozen language model": {"freeze": ("llm",), "batch": PACKED},
    "frozen encoder": {"freeze": ("dino",)},
}


@pytest.fixture
def fused(monkeypatch):
    """On CPUs the model avoids the fused kernel in bfloat16 for its speed; GPUs use one, so here it is used as well."""

    def attend(query, key, value, mask, causal):
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, enable_gqa=grouped)

    monkeypatch.setattr(attention, "_attend_plainly", attend)


def kept_bytes(model, batch, precision: str) -> int:
    """Measured: distinct storages that the backward pass will need, weights apart, and what encoder keeps to be read."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage  # kept, so that no address is used twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext():
            output = model(batch)
        output.objective_B.sum()
    return sum(storage.nbytes() for storage in storages.values())


def load_of(model, batch) -> memory.Load:
    plan = model.plan(batch)
    rows = plan.rows
    scored = int(plan.count_B.sum())  # the forward pass keeps logits of these alone
    return memory.Load(
        frames=len(batch.frames),
        positions=len(batch.frame_index),
        text_tokens=scored,
        query_cells=len(batch.frames) * plan.visits.most,
        visual_cells=plan.visual_rows.count * plan.visual_rows.width,
        cells=rows.count * rows.width,
        width=0 if rows.mask is None else rows.width,
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [SMALL, NARROW_135M], ids=["small", "narrow 135M"])
@pytest.mark.parametrize("case", CASES)
def test_the_prediction_is_what_a_forward_pass_keeps(case, sizes, precision, fused):
    changes = {**sizes, **CASES[case]}
    batch, freeze = joined(changes.pop("batch", ALONE)), changes.pop("freeze", ())
    model = build_model(configuration(**changes), seed=0)
    model.freeze(freeze)
    item = 2 if precision == "bfloat16" else 4
    predicted = memory.saved_bytes(model.config, Trained.all_but(freeze), item, load_of(model, batch))
    measured = kept_bytes(model, batch, precision)
    print(f"\nRATIO {case} {precision} {predicted / measured:.3f} {measured / 1e6:.1f}")
    assert 0.95 < predicted / measured < 1.15
