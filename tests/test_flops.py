"""Counted parameters and FLOPs against the model itself, on the meta device (no memory, no arithmetic)."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fvlm import flops, schema
from fvlm.batch import Batch
from fvlm.model.build import build_model

TINY = {
    "encoder": schema.EncoderSize(name="tiny", width=64, layers=3, heads=4, patch=32),
    "language": schema.LanguageSize(name="tiny", width=96, ffn=256, layers=2, heads=4, kv_heads=2, vocabulary=768),
    "query_dim": 48,
}
SMALL = {
    "encoder": schema.EncoderSize(name="dinov2-small", width=384, layers=12, heads=6, position_side=37),
    "language": schema.LanguageSize(
        name="SmolLM2-135M", width=576, ffn=1536, layers=30, heads=9, kv_heads=3, vocabulary=49_152
    ),
    "query_dim": 384,
}


def model_of(sizes: dict, architecture: str, tokens: int = 16, **changes) -> schema.Model:
    settings = {
        "architecture": architecture,
        "deep_query": True,
        "fine_pass": True,
        "query_init_std": 1.0,
        "visual_scale": 0.14,
        "lambda_coarse": 0.0,
        "tokens_per_frame": tokens,
    }
    return schema.Model(**{**settings, **sizes, **changes})


def one_sample(frames: int, text: int, scored: int, encoded: int | None = None) -> Batch:
    """Frames and tokens have no content; counts and masks do."""
    encoded = frames if encoded is None else encoded
    return Batch(
        frames=torch.empty(encoded, 224, 224, 3, dtype=torch.uint8, device="meta"),
        frame_index=torch.arange(frames) % max(encoded, 1),
        frame_counts=torch.tensor([frames]),
        token_ids=torch.empty(text, dtype=torch.int64, device="meta"),
        token_counts=torch.tensor([text]),
        loss_mask=torch.arange(text) >= text - scored,
        keys=["0"],
        sources=["meta"],
    )


def measured(model: schema.Model, batch: Batch, freeze: tuple = (), mode: str | None = None) -> tuple[int, int]:
    """FLOPs forward, and forward and backward, as torch counts them."""
    with torch.device("meta"):
        network = build_model(model, seed=0)
    network.freeze(freeze)
    with FlopCounterMode(display=False) as counter:
        loss = network(batch, mode).objective_B.sum()
    forward = counter.get_total_flops()
    if loss.requires_grad:
        with counter:
            loss.backward()
    return forward, forward + counter.get_total_flops() if loss.requires_grad else forward


ALL = ("connector", "dino", "llm")
VARIANTS = [
    ("foveated", 16, {}),
    ("foveated", 16, {"deep_query": False}),
    ("foveated", 16, {"fine_pass": False}),
    ("foveated", 16, {"lambda_coarse": 0.5}),
    ("multi_token", 16, {}),
    ("multi_token", 1, {}),
    ("pixel_shuffle", 49, {}),
]


@pytest.mark.parametrize("architecture, tokens, changes", VARIANTS)
@pytest.mark.parametrize("frames, encoded", [(8, 8), (8, 1), (0, 0)])
def test_flops_tiny(architecture, tokens, changes, frames, encoded):
    model = model_of(TINY, architecture, tokens, **changes)
    forward, both = measured(model, one_sample(frames, 40, 25, encoded))
    assert flops.forward_flops(model, frames, 40, 25, encoded) == pytest.approx(forward, rel=1e-9)
    assert flops.training_flops(model, (), frames, 40, 25, encoded) == pytest.approx(both, rel=1e-9)


@pytest.mark.parametrize("architecture", ["foveated", "multi_token"])
@pytest.mark.parametrize("frames", [8, 64])
def test_flops_published_sizes(architecture, frames):
    model = model_of(SMALL, architecture)
    forward, both = measured(model, one_sample(frames, 100, 60))
    assert flops.forward_flops(model, frames, 100, 60) == pytest.approx(forward, rel=1e-9)
    assert flops.training_flops(model, (), frames, 100, 60) == pytest.approx(both, rel=1e-9)


@pytest.mark.parametrize(
    "freeze",
    [("dino",), ("llm",), ("connector",), ("dino", "llm"), ("connector", "dino"), ("connector", "llm"),
     ("connector", "dino", "llm")],
)  # fmt: skip
@pytest.mark.parametrize("architecture, deep", [("foveated", True), ("foveated", False), ("multi_token", True)])
@pytest.mark.parametrize("frames", [0, 5])
def test_flops_of_frozen_parts(freeze, architecture, deep, frames):
    model = model_of(TINY, architecture, deep_query=deep)
    _, both = measured(model, one_sample(frames, 40, 25), freeze)
    assert flops.training_flops(model, freeze, frames, 40, 25) == pytest.approx(both, rel=1e-9)


def test_flops_of_autoregressive_mode():
    model = model_of(TINY, "foveated")
    forward, _ = measured(model, one_sample(6, 40, 25), ALL, "autoregressive")
    assert flops.forward_flops(model, 6, 40, 25, mode="autoregressive") == pytest.approx(forward, rel=1e-9)


def test_flops_of_arrays_are_those_of_each_sample():
    model = model_of(SMALL, "foveated")
    frames, text, scored, encoded = (np.array(x) for x in ([0, 8, 64], [30, 40, 50], [30, 4, 9], [0, 1, 64]))
    together = flops.training_flops(model, ("dino",), frames, text, scored, encoded)
    alone = [
        flops.training_flops(model, ("dino",), *map(int, row))
        for row in zip(frames, text, scored, encoded, strict=True)
    ]
    assert together.tolist() == alone and all(isinstance(value, float) for value in alone)


@pytest.mark.parametrize("sizes", [TINY, SMALL])
@pytest.mark.parametrize("architecture, tokens", [("foveated", 16), ("multi_token", 16), ("pixel_shuffle", 49)])
def test_parameters_are_those_of_the_model(sizes, architecture, tokens):
    model = model_of(sizes, architecture, tokens)
    with torch.device("meta"):
        network = build_model(model, seed=0)
    counted = {
        group: sum(parameter.numel() for parameter in members.values())
        for group, members in network.parameter_groups().items()
    }
    assert flops.parameters(model) == {**counted, "total": sum(counted.values())}


def test_parameters_of_published_models():
    encoders = {22_056_576: (384, 6), 86_580_480: (768, 12)}
    languages = {
        134_515_008: (576, 1536, 30, 9, 3),
        361_821_120: (960, 2560, 32, 15, 5),
        1_711_376_384: (2048, 8192, 24, 32, 32),
    }
    for published, (width, heads) in encoders.items():
        size = schema.EncoderSize(name="dino", width=width, layers=12, heads=heads, position_side=37)
        assert flops.parameters(model_of({**SMALL, "encoder": size}, "foveated"))["dino"] == published
    for published, (width, ffn, layers, heads, kv_heads) in languages.items():
        size = schema.LanguageSize(
            name="llm", width=width, ffn=ffn, layers=layers, heads=heads, kv_heads=kv_heads, vocabulary=49_152
        )
        assert flops.parameters(model_of({**SMALL, "language": size}, "foveated"))["llm"] == published
