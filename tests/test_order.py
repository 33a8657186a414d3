"""The order of training samples: a function of the seed, each sample at most once, the mixture exact everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvlm.data.index import Index
from fvlm.data.order import cut_to_flops, cut_to_samples, draw_order, micro_batches, split_held_out
from fvlm.errors import UserError


def index(kind: str, count: int, seed: int = 0) -> Index:
    rng = np.random.default_rng(seed)
    frames = {
        "video": rng.integers(1, 65, count),
        "image": np.ones(count, int),
        "text": np.zeros(count, int),
    }[kind]
    return Index(
        shards=np.array(["a.tar"]), shard=np.zeros(count, np.int32),
        offset=np.arange(count), length=np.ones(count, int),
        frames=frames, text_tokens=rng.integers(5, 400, count), answer_tokens=np.full(count, 3),
        group=rng.integers(0, 2**62, count), keys=np.array([f"{kind}-{i}" for i in range(count)]),
        kind=kind, source=kind, rejected=0,
    )  # fmt: skip


INDICES = [index("video", 500), index("image", 300, 1), index("text", 200, 2), index("video", 100, 3)]
ROWS = [np.arange(len(one)) for one in INDICES]
SHARE = {"video": 0.60, "image": 0.26, "text": 0.14}


def order(seed=42, share=SHARE, static_frames=8):
    return draw_order(INDICES, ROWS, share, static_frames, 512, seed)


@given(seed=st.integers(0, 2**31), parts=st.lists(st.integers(5, 100), min_size=3, max_size=3))
@settings(max_examples=30, deadline=None)
def test_no_sample_twice_and_every_window_holds_its_share(seed, parts):
    share = dict(zip(("video", "image", "text"), np.array(parts) / sum(parts), strict=True))
    drawn = order(seed, share)
    assert len(set(zip(drawn.source.tolist(), drawn.row.tolist(), strict=True))) == len(drawn)
    kinds = np.array([one.kind for one in INDICES])[drawn.source]
    for start in range(0, len(drawn) - 100, 37):
        for kind, part in share.items():
            assert abs((kinds[start : start + 100] == kind).sum() - 100 * part) <= 2


def test_the_order_is_a_function_of_the_seed():
    same, other = order(), order(seed=43)
    assert (order().row == same.row).all() and (order().source == same.source).all()
    assert (same.row[:200] != other.row[:200]).any()


def test_a_shorter_run_is_the_start_of_a_longer_one():
    whole = order()
    assert (cut_to_samples(whole, 100, "r").row == whole.row[:100]).all()


def test_an_image_becomes_static_frames():
    drawn = order(static_frames=16)
    kinds = np.array([one.kind for one in INDICES])[drawn.source]
    assert (drawn.positions[kinds == "image"] == 16).all()
    assert (drawn.positions[kinds == "text"] == 0).all()


def test_more_than_one_epoch_is_refused():
    with pytest.raises(UserError, match="no sample is trained on twice"):
        cut_to_samples(order(), 10**6, "r")
    with pytest.raises(UserError, match="no sample is trained on twice"):
        cut_to_flops(order(), np.ones(len(order())), 1e9, "r")


def test_a_budget_is_spent_and_not_exceeded():
    drawn = order()
    cost = drawn.positions * 10.0 + drawn.text_tokens + 1
    cut = cut_to_flops(drawn, cost, 20_000, "r")
    spent = cost[: len(cut)].sum()
    assert spent <= 20_000 < spent + cost[len(cut)]
    with pytest.raises(UserError, match="raise the budget"):
        cut_to_flops(drawn, cost, cost[0] / 2, "r")


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(1, 500)), min_size=1, max_size=40))
def test_micro_batches_keep_every_sample_within_the_budget(samples):
    positions, tokens = np.array(samples).T
    groups = micro_batches(positions, tokens, 100, 800)
    assert [i for group in groups for i in group] == list(range(len(samples)))
    for group in groups:
        assert len(group) == 1 or (positions[group].sum() <= 100 and tokens[group].sum() <= 800)


def test_held_out_videos_are_held_out_whole():
    one = index("video", 5000)
    one.group[:] = np.repeat(np.random.default_rng(0).integers(0, 2**62, 1000), 5)
    train, held = split_held_out(one, 0.1)
    assert not set(one.group[train]) & set(one.group[held])
    assert len(train) + len(held) == 5000 and 300 < len(held) < 700
