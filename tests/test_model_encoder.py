"""The walk through DINOv2 against `Dinov2Model` itself, and what queries see."""

import math

import pytest
import torch

from benchmarks.obvious import exported, normalised
from fvlm.model.build import build_model
from fvlm.model.encoder import Visits
from tests.model_cases import IMAGE, configuration, sample, states_by_mask, tiny


@pytest.mark.parametrize("encoder", [{}, {"position_side": 7}, {"patch": 16}])
def test_features_equal_dinov2(encoder):
    model, frames = tiny(encoder=encoder), sample(3, 4, seed=1).frames
    side = IMAGE // model.config.encoder.patch * model.config.encoder.patch
    expected = exported(model).vision_model(normalised(frames, torch.float64)[:, :, :side, :side]).last_hidden_state
    states = model.dino.encode(frames, keys=True, features=True)
    torch.testing.assert_close(states.features, expected)
    assert len(states.keys) == len(states.values) == model.config.encoder.layers


@pytest.mark.parametrize("encoder", [{}, {"position_side": 7}])
def test_deep_reading_is_one_more_token(encoder):
    model, frames = tiny(encoder=encoder), sample(3, 4, seed=1).frames
    query = torch.randn(3, 32, dtype=torch.float64)
    states = model.dino.encode(frames, keys=True, features=False)
    found, _ = model.dino.read(query, states, Visits(None, 1))
    by_mask = states_by_mask(exported(model).vision_model, frames, query)
    torch.testing.assert_close(found, by_mask[:, -1])
    alone = exported(model).vision_model(normalised(frames, torch.float64)).last_hidden_state
    torch.testing.assert_close(by_mask[:, :-1], alone)  # no patch has seen it


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("index", [[0, 1, 2], [2, 0, 1], [1, 1, 1, 0, 2, 2], [0, 0]])
def test_reading_follows_the_frame_index(deep, index):
    model, frames = tiny(deep_query=deep), sample(3, 4, seed=1).frames
    states, queries = model.encode(frames), torch.randn(len(index), 16, dtype=torch.float64)
    index = torch.tensor(index)
    visits = Visits.of(index, len(frames), torch.device("cpu"))
    found, attention = model.read(queries, states, visits, True)
    copied, expected = model.read(queries, states.select(index), Visits(None, 1), True)
    torch.testing.assert_close(found, copied)
    torch.testing.assert_close(attention.patches, expected.patches)
    torch.testing.assert_close(attention.entropy, expected.entropy)


@pytest.mark.parametrize("deep", [True, False])
def test_different_queries_look_at_different_places(deep):
    model = tiny(deep_query=deep)
    frames, queries = sample(1, 4, seed=1).frames, torch.randn(2, 16, dtype=torch.float64)
    visits = Visits.of(torch.zeros(2, dtype=torch.int64), 1, torch.device("cpu"))
    tokens, attention = model.read(queries, model.encode(frames), visits, True)
    assert (attention.patches[0] - attention.patches[1]).abs().max() > 1e-2
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3
    torch.testing.assert_close(attention.patches.sum(1), torch.ones(2, dtype=torch.float64))
    # a query that is nearly zero reads nearly uniformly from the start: it has nothing to look for
    _, weak = model.read(1e-6 * queries, model.encode(frames), visits, True)
    if not deep:
        assert weak.entropy.min() > math.log(17) - 1e-6 > attention.entropy.max()


def test_deep_queries_differ_more_than_shallow_ones():
    """Correlation of what many queries read from one frame: near 1, the query hardly matters."""
    found = {}
    for deep in (True, False):
        model = tiny(deep_query=deep)
        visits = Visits.of(torch.zeros(20, dtype=torch.int64), 1, torch.device("cpu"))
        queries = torch.randn(20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        tokens, _ = model.read(queries, model.encode(sample(1, 4, seed=1).frames), visits, False)
        correlation = torch.corrcoef(tokens)
        found[deep] = (correlation.sum() - 20) / (20 * 19)
    assert -1 < found[True] < found[False] <= 1


def test_attention_that_cannot_tell_is_uniform():
    model = tiny()
    for layer in model.dino.layers:
        torch.nn.init.zeros_(layer.attention.q_proj.weight)
    frames = sample(2, 4, seed=1).frames
    _, attention = model.read(torch.randn(2, 16).double(), model.encode(frames), Visits(None, 1), True)
    torch.testing.assert_close(attention.entropy, torch.full((2,), math.log(17), dtype=torch.float64))
    torch.testing.assert_close(attention.patches, torch.full((2, 16), 1 / 16, dtype=torch.float64))


def test_the_query_projection_adds_nothing_to_a_query():
    """A bias once drowned the query: all queries then looked at the same place."""
    project, query = tiny().connector.query_input_proj, torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(project(torch.zeros_like(query)), torch.zeros(3, 32, dtype=torch.float64))
    torch.testing.assert_close(project(2 * query), 2 * project(query))


def test_frames_of_another_size_are_refused():
    with pytest.raises(ValueError, match="expected"):
        tiny().encode(sample(2, 4, seed=1, image=28).frames)


def test_raw_bytes_lose_nothing_in_bfloat16():
    """Normalisation sits in the weights of the patch product; half precision must not suffer from that."""
    model, frames = build_model(configuration(), 0), sample(3, 4, seed=1).frames
    exact = model.dino.encode(frames, keys=False, features=True).features
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.dino.encode(frames, keys=False, features=True).features
    assert (rough - exact).norm() / exact.norm() < 0.03
