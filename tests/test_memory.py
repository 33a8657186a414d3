"""Predicted memory against what a forward pass really keeps."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from fvlm.batch import Batch
from fvlm.config.resolve import load_study
from fvlm.config.study_file import merged, read_yaml
from fvlm.costs import memory
from fvlm.costs.flops import Trained, parameters
from fvlm.data.batches.dealing import micro_batches
from fvlm.model import attention
from fvlm.model.build import build_model
from fvlm.model.losses import CHUNK
from fvlm.model.packing import first_fit
from tests.model_cases import configuration, joined, sample

CONFIG = Path(__file__).resolve().parents[1] / "config"

# --- what a forward pass keeps for the backward pass ---

SMALL = {
    "encoder": {"width": 128, "layers": 2, "heads": 4, "image": 112},
    "language": {"width": 96, "ffn": 256, "layers": 2, "heads": 6, "kv_heads": 2, "vocabulary": 1000},
    "query_dim": 64,
}
NARROW_135M = {  # DINOv2-small and SmolLM2-135M with fewer layers and words
    "encoder": {"width": 384, "layers": 2, "heads": 6, "image": 112, "position_side": 37},
    "language": {"width": 576, "ffn": 1536, "layers": 3, "heads": 9, "kv_heads": 3, "vocabulary": 2048},
    "query_dim": 384,
}


def pair(chosen: Batch, rejected: Batch) -> Batch:
    """Two answers about the same frames, which are there once."""
    both = joined([chosen, rejected])
    return replace(both, frames=chosen.frames, frame_index=chosen.frame_index.repeat(2))


SIZES = {"small": SMALL, "135M": NARROW_135M}
ALONE = [sample(6, 40, i, image=112) for i in range(4)]  # equal lengths: every sample has a row of its own
PACKED = [
    *(sample(frames, text, i, image=112) for i, (frames, text) in enumerate([(8, 120), (3, 30), (5, 60), (0, 45)])),
    sample(4, 20, 9, static=True, image=112),
]
ASKED = [  # some ask first, at length
    *(sample(frames, text, i, image=112, question=question) for i, (frames, text, question) in
      enumerate([(8, 120, 90), (3, 30, 10), (5, 60, 0), (0, 45, 0), (6, 100, 70)])),
]  # fmt: skip
PAIR = pair(sample(6, 60, 1, image=112), sample(6, 40, 2, image=112))
STILL = pair(
    sample(4, 50, 3, static=True, image=112, question=20), sample(4, 70, 4, static=True, image=112, question=20)
)
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
    "question first": {"batch": ASKED},
    "looking three times, question first, frozen encoder": {"fine_passes": 3, "batch": ASKED, "freeze": ("dino",)},
    "looking twice, both passes scored": {"fine_passes": 2, "lambda_coarse": 0.5},
    "looking twice, shallow query": {"fine_passes": 2, "deep_query": False, "batch": PACKED},
    "blind": {"architecture": "blind"},
    "blind, packed": {"architecture": "blind", "batch": PACKED},
    "pair of answers": {"batch": [PAIR]},
    "two pairs of answers about still images, question first": {"batch": [STILL, STILL]},
}


@pytest.fixture
def fused(monkeypatch):
    """What GPUs run: on CPUs the model avoids the fused kernel in bfloat16, and grouped keys need no copies there."""
    attend = partial(attention._attend_fused, on_gpu=True)
    monkeypatch.setattr(attention, "_attend_plainly", attend)
    monkeypatch.setattr(attention, "_attend_fused", lambda *arguments, on_gpu: attend(*arguments))


def kept_bytes(model, batch, precision: str) -> int:
    """Measured: the distinct storages that the backward pass will need, weights apart."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage  # kept, so that no address is used twice
        return tensor

    lower = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()
    with lower, saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(batch)
    assert output.objective_B.requires_grad  # so that the graph is still there
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
        visual_width=0 if plan.visual_rows.mask is None else plan.visual_rows.width,
        width=0 if rows.mask is None else rows.width,
    )


LARGER = ["baseline", "packed rows and a still image", "pooled", "connector alone", "frozen language model",
          "frozen encoder", "question first", "pair of answers"]  # fmt: skip
SIZED = [("small", case) for case in CASES] + [("135M", case) for case in LARGER]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("size", "case"), SIZED)
def test_the_prediction_is_what_a_forward_pass_keeps(size, case, precision, fused):
    changes = {**SIZES[size], **CASES[case]}
    batch, freeze = joined(changes.pop("batch", ALONE)), changes.pop("freeze", ())
    model = build_model(configuration(**changes), seed=0)
    model.freeze(freeze)
    item = 2 if precision == "bfloat16" else 4
    predicted = memory.Pass(model.config, Trained.all_but(freeze), item, load_of(model, batch)).saved_bytes()
    measured = kept_bytes(model, batch, precision)
    assert 0.95 < predicted / measured < 1.15


# --- the fullest micro-batch ---


def paper(**changes):
    """The study of the paper, with the optional stage."""
    changes = {"only": {"stages": ["stage1", "stage2", "stage3", "dpo"]}, **changes}
    return load_study(merged(read_yaml(CONFIG / "paper.yaml"), changes), CONFIG)


@pytest.mark.parametrize(("frames", "tokens"), [(128, 4096), (64, 512), (16, 100), (4096, 65536)])
@pytest.mark.parametrize("name", ["baseline", "B0", "B1", "Q1", "dpo"])
def test_no_micro_batch_is_larger_than_the_largest_load(name, frames, tokens):
    run = paper(baseline={"operation.micro_frames": frames, "operation.micro_tokens": tokens}).runs[name]
    most, visual = memory.largest_load(run), run.model.visual_tokens
    draw, halves = np.random.default_rng(0), 2 if name == "dpo" else 1
    for worst in (1, 200, 512):  # texts of any length, hardly any that share a row, all cut
        for _ in range(40):
            positions = np.repeat(draw.integers(0, 65, (run.optim.batch_size, 1)), halves, 1)
            text = draw.integers(worst, 513, positions.shape)
            asked = draw.integers(0, text + 1) * (positions > 0) * (run.data.question_first > 0)
            for group in micro_batches(positions.sum(1), text.sum(1), frames, tokens):
                shown, said, before = (counts[group].ravel() for counts in (positions, text, asked))
                _, _, rows, width = first_fit(shown * visual + said)
                _, _, visual_rows, visual_width = first_fit(shown * visual + before)
                assert shown.sum() <= most.positions and said.sum() <= most.text_tokens
                assert rows * width <= most.cells and width <= most.width
                assert visual_rows * visual_width <= most.visual_cells and visual_width <= most.visual_width


def test_the_numbers_are_those_of_the_code():
    assert memory.CHUNK == CHUNK
    model = build_model(configuration(**SMALL), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values() if value.ndim]
    tensors = [*model.parameters(), *(parameter.grad for parameter in model.parameters()), *state]
    count = sum(parameter.numel() for parameter in model.parameters())
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == memory.STATE * count


def test_a_moving_average_keeps_every_trained_weight_once_more():
    def needed(name: str, ema: float | None) -> int:
        return memory.predicted_bytes(paper(baseline={"optim.ema": ema}).runs[name])

    run = paper().runs["baseline"]
    assert needed("baseline", 0.999) - needed("baseline", None) == 4 * parameters(run.model)["total"]
    assert needed("F1", 0.999) - needed("F1", None) == 4 * parameters(run.model)["connector"]


def test_less_work_at_a_time_needs_less_memory_and_freezing_as_well():
    def needed(name="baseline", **changes):
        return memory.predicted_bytes(paper(baseline=changes).runs[name])

    full = needed()
    assert needed(**{"operation.micro_frames": 64}) < full < needed(**{"operation.micro_frames": 256})
    assert needed(**{"operation.micro_tokens": 1024}) < full < needed(**{"operation.micro_tokens": 8192})
    assert needed("F1") < needed("F2") < full < needed(**{"train.precision": "float32"})
    assert needed("B0") < needed("A6") < full < needed("A9") and full < needed("Q1")
    assert needed("135M-C1-F") < needed("360M-C1-F") < needed("1.7B-C1-F")
