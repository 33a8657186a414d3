"""Counted parameters and FLOPs against the model itself, on the meta device (no memory, no arithmetic)."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fvlm.batch import Batch
from fvlm.config import schema
from fvlm.config.architectures import ARCHITECTURES
from fvlm.costs import flops
from fvlm.model.build import build_model
from fvlm.model.foveated import VideoLanguageModel
from tests.model_cases import configuration, published

TINY = {
    "encoder": {"width": 64, "layers": 2, "heads": 4, "patch": 32, "image": 224},
    "language": {"width": 96, "ffn": 256, "layers": 1, "heads": 4, "kv_heads": 2, "vocabulary": 768},
    "query_dim": 48,
}
SMALL = {**published("dinov2-small", "SmolLM2-135M"), "query_dim": 384}


def model_of(sizes: dict, architecture: str, tokens: int = 16, **changes) -> schema.Model:
    return configuration(architecture, **{**sizes, "tokens_per_frame": tokens, **changes})


def one_sample(frames: int, text: int, scored: int, encoded: int | None = None, question: int = 0) -> Batch:
    """Frames and tokens have no content; counts and masks do."""
    return samples_of(frames, [text], [scored], encoded, question)


def samples_of(frames: int, text: list, scored: list, encoded: int | None = None, question: int = 0) -> Batch:
    """Samples of the same frames, which are encoded once, with texts of their own."""
    encoded, count = frames if encoded is None else encoded, len(text)
    return Batch(
        frames=torch.empty(encoded, 224, 224, 3, dtype=torch.uint8, device="meta"),
        frame_index=(torch.arange(frames) % max(encoded, 1)).repeat(count),
        frame_counts=torch.full((count,), frames),
        token_ids=torch.empty(sum(text), dtype=torch.int64, device="meta"),
        token_counts=torch.tensor(text),
        loss_mask=torch.cat([torch.arange(t) >= t - n for t, n in zip(text, scored, strict=True)]),
        keys=["0"] * count,
        sources=["meta"] * count,
        question_counts=torch.full((count,), question),
    )


def on_meta(model: schema.Model) -> VideoLanguageModel:
    with torch.device("meta"):
        return build_model(model, seed=0)


def measured(model: schema.Model, batch: Batch, freeze: tuple = (), mode: str | None = None) -> tuple[int, int]:
    """FLOPs forward, and forward and backward, as torch counts them."""
    network = on_meta(model)
    network.freeze(freeze)
    with FlopCounterMode(display=False) as counter:
        loss = network(batch, mode).objective_B.sum()
    forward = counter.get_total_flops()
    if loss.requires_grad:
        with counter:
            loss.backward()
    return forward, forward + counter.get_total_flops() if loss.requires_grad else forward


def counted(model: schema.Model) -> dict[str, int]:
    """Parameters of the model itself."""
    groups = on_meta(model).parameter_groups().items()
    counts = {group: sum(parameter.numel() for parameter in members.values()) for group, members in groups}
    return {**counts, "total": sum(counts.values())}


PARTS = ("connector", "dino", "llm")
FROZEN = [freeze for count in range(1, 4) for freeze in combinations(PARTS, count)]
VARIANTS = [
    ("foveated", 16, {}),
    ("foveated", 16, {"deep_query": False}),
    ("foveated", 16, {"fine_pass": False}),
    ("foveated", 16, {"lambda_coarse": 0.5}),
    ("foveated", 16, {"fine_passes": 2}),
    ("foveated", 16, {"fine_passes": 3, "deep_query": False, "lambda_coarse": 0.5}),
    ("multi_token", 16, {}),
    ("multi_token", 1, {}),
    ("pixel_shuffle", 49, {}),
    ("blind", 16, {}),
]


def check(model: schema.Model, frames: int, encoded: int | None = None, question: int = 0, freeze: tuple = ()) -> None:
    forward, both = measured(model, one_sample(frames, 40, 25, encoded, question), freeze)
    counts = (frames, 40, 25, encoded)
    assert flops.forward_flops(model, *counts, question_tokens=question) == pytest.approx(forward, rel=1e-9)
    assert flops.training_flops(model, freeze, *counts, question_tokens=question) == pytest.approx(both, rel=1e-9)


def test_every_architecture_is_checked():
    assert {architecture for architecture, _, _ in VARIANTS} == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture, tokens, changes", VARIANTS)
@pytest.mark.parametrize("frames, encoded", [(8, 8), (8, 1), (0, 0)])
@pytest.mark.parametrize("question", [0, 13])
def test_flops_of_every_variant(architecture, tokens, changes, frames, encoded, question):
    check(model_of(TINY, architecture, tokens, **changes), frames, encoded, question)


@pytest.mark.parametrize("encoder", ["dinov2-small", "dinov2-base"])
@pytest.mark.parametrize("language", ["SmolLM2-135M", "SmolLM2-360M", "SmolLM2-1.7B"])
@pytest.mark.parametrize("architecture", ["foveated", "multi_token"])
@pytest.mark.parametrize("frames, question", [(8, 40), (64, 0)])
def test_flops_of_the_published_widths(encoder, language, architecture, frames, question):
    """With two layers each, for speed."""
    sizes = published(encoder, language)
    sizes = {part: {**numbers, "layers": 2} for part, numbers in sizes.items()}
    check(model_of({**sizes, "query_dim": 384}, architecture), frames, question=question)


@pytest.mark.parametrize("encoder, language, architecture, frames", [
    ("dinov2-small", "SmolLM2-135M", "foveated", 8), ("dinov2-base", "SmolLM2-1.7B", "multi_token", 64),
])  # fmt: skip
def test_flops_of_published_sizes_at_full_depth(encoder, language, architecture, frames):
    check(model_of({**published(encoder, language), "query_dim": 384}, architecture), frames)


@pytest.mark.parametrize("freeze", FROZEN)
@pytest.mark.parametrize("architecture, tokens, changes", [
    variant for variant in VARIANTS if "lambda_coarse" not in variant[2] and variant[1] > 1
])  # fmt: skip
@pytest.mark.parametrize("frames, question", [(0, 0), (5, 13)])
def test_flops_of_frozen_parts(freeze, architecture, tokens, changes, frames, question):
    check(model_of(TINY, architecture, tokens, **changes), frames, None, question, freeze)


@pytest.mark.parametrize("question", [0, 1, 13])
@pytest.mark.parametrize("changes", [{}, {"deep_query": False}, {"fine_passes": 2}])
def test_flops_of_autoregressive_mode(changes, question):
    model = model_of(TINY, "foveated", **changes)
    forward, _ = measured(model, one_sample(6, 40, 25, question=question), PARTS, "autoregressive")
    counted = flops.forward_flops(model, 6, 40, 25, mode="autoregressive", question_tokens=question)
    assert counted == pytest.approx(forward, rel=1e-9)


@pytest.mark.parametrize("freeze", [(), ("dino",), ("connector", "dino"), ("llm",)])
@pytest.mark.parametrize("architecture, changes", [("foveated", {}), ("foveated", {"fine_passes": 2}),
                                                   ("foveated", {"deep_query": False}), ("multi_token", {}),
                                                   ("blind", {})])  # fmt: skip
@pytest.mark.parametrize("encoded, question", [(6, 0), (1, 13)])
def test_flops_of_a_preference_pair(freeze, architecture, changes, encoded, question):
    """Both answers forward and backward with their frames encoded once, and both once more as the reference."""
    model = model_of(TINY, architecture, **changes)
    pair = samples_of(6, [40, 40], [25, 9], encoded, question)
    forward, _ = measured(model, pair, PARTS)
    _, both = measured(model, pair, freeze)
    found = flops.preference_flops(model, freeze, 6, 40, 40, 25, 9, encoded, question)
    assert found == pytest.approx(forward + both, rel=1e-9)


def test_flops_of_a_pair_of_unlike_answers_are_those_of_its_halves():
    model = model_of(TINY, "foveated")
    found = flops.preference_flops(model, (), 6, 50, 30, 25, 9)
    halves = [flops.preference_flops(model, (), 6, text, text, scored, scored) for text, scored in ((50, 25), (30, 9))]
    assert found == pytest.approx(sum(halves) / 2, rel=1e-12)


def test_flops_of_arrays_are_those_of_each_sample():
    model = model_of(SMALL, "foveated")
    columns = ([0, 8, 64, 8], [30, 40, 50, 40], [30, 4, 9, 4], [0, 1, 64, 8], [7, 0, 20, 9])
    together = flops.training_flops(model, ("dino",), *map(np.array, columns))
    alone = [flops.training_flops(model, ("dino",), *row) for row in zip(*columns, strict=True)]
    assert together.tolist() == alone and all(isinstance(value, float) for value in alone)
    frames, text, scored, encoded, question = map(np.array, columns)
    pairs = flops.preference_flops(model, (), frames, text, text, scored, scored, encoded, question)
    assert pairs.shape == (4,) and (pairs > together).all()


@pytest.mark.parametrize("sizes", [TINY, SMALL])
@pytest.mark.parametrize(
    "architecture, tokens", [("foveated", 16), ("multi_token", 16), ("pixel_shuffle", 49), ("blind", 16)]
)
def test_parameters_are_those_of_the_model(sizes, architecture, tokens):
    model = model_of(sizes, architecture, tokens)
    assert flops.parameters(model) == counted(model)
