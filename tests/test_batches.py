"""Planned steps: equal costs, micro-batches within their budgets, the same for any number of ranks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fvlm.data.batches.dealing import BLOCK_STEPS, balanced, micro_batches, rank_shares
from tests.test_order import kinds_of, order

lengths = st.lists(st.tuples(st.integers(0, 64), st.integers(1, 500)), min_size=1, max_size=40)


def spread(cost: np.ndarray, batch_size: int) -> float:
    """Standard deviation over mean of the full steps' costs."""
    steps = cost[: len(cost) // batch_size * batch_size].reshape(-1, batch_size).sum(1)
    return steps.std() / steps.mean()


@given(seed=st.integers(0, 2**31), batch_size=st.integers(1, 40), weighted=st.booleans())
@settings(max_examples=30, deadline=None)
def test_balancing_moves_samples_only_within_their_stream_and_block(seed, batch_size, weighted):
    drawn = order(seed, weights={"long": 4, "short": 1} if weighted else None)
    places = balanced(drawn, drawn.positions * 10.0 + drawn.text_tokens, batch_size)
    after = drawn.at(places)
    assert sorted(places) == list(range(len(drawn)))
    assert (after.stream == drawn.stream).all() and (kinds_of(after) == kinds_of(drawn)).all()
    block = BLOCK_STEPS * batch_size
    assert (places // block == np.arange(len(drawn)) // block).all()


def test_balanced_steps_cost_the_same():
    drawn = order()
    cost = drawn.positions * 10.0 + drawn.text_tokens
    after = cost[balanced(drawn, cost, 16)]
    assert spread(cost, 16) > 0.1
    assert spread(after, 16) < 0.02
    assert (after == cost[balanced(order(), cost, 16)]).all()


@given(samples=lengths, ranks=st.integers(1, 4))
def test_ranks_share_the_samples_of_a_step_evenly(samples, ranks):
    shares = rank_shares(*np.array(samples).T, ranks)
    assert sorted(i for share in shares for i in share) == list(range(len(samples)))
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1


def test_ranks_get_about_the_same_work():
    rng = np.random.default_rng(0)
    positions, tokens = rng.integers(0, 65, 32), rng.integers(20, 400, 32)
    for column in (positions, tokens):
        work = [column[share].sum() for share in rank_shares(positions, tokens, 4)]
        assert max(work) < 1.35 * min(work)


@given(samples=lengths)
def test_micro_batches_keep_every_sample_within_the_budget(samples):
    positions, tokens = np.array(samples).T
    groups = micro_batches(positions, tokens, 100, 800)
    assert sorted(i for group in groups for i in group) == list(range(len(samples)))
    for group in groups:
        assert len(group) == 1 or (positions[group].sum() <= 100 and tokens[group].sum() <= 800)
    open_ones = [g for g in groups if positions[g].sum() <= 50 and tokens[g].sum() <= 400]
    assert len(open_ones) <= 1, "two half-empty groups would have been one"
