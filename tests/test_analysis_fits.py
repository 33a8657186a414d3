"""The optimizer of the fits finds the lowest minimum, and the bootstrap draws what it promises."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, t

from fvlm.analysis.collect import flatten
from fvlm.analysis.fits.descent import Objective, descend, starts
from fvlm.analysis.fits.scaling import scaling_fits
from fvlm.analysis.fits.sums import (
    LEAST,
    SQUARES,
    block_length,
    block_scale,
    bootstrap,
    estimates,
    fit_power_laws,
    resampled_points,
    resampled_residuals,
    resampling,
)
from tests.analysis_cases import BUDGETS, LAW, SIZES, law, study_summaries
from tests.fit_cases import correlated

# The first study's data: named by the environment, or in a folder beside the checkout.
BESIDE = next(Path(__file__).parents[2].glob("*/reference"), Path("reference"))
REFERENCE = Path(os.environ.get("FVLM_TEST_REFERENCE", BESIDE))


def grid(sizes, noise=0.0, seed=0):
    """(N, D) and losses of sizes x budgets."""
    rng = np.random.default_rng(seed)
    x = np.array([(n, flops / (1500 * n)) for n in sizes for flops in BUDGETS.values()])
    return x, law(x[:, 0], x[:, 1]) * np.exp(noise * rng.normal(size=len(x)))


def test_one_outlier_hardly_moves_the_fit():
    x, loss = grid([n for n, _ in SIZES.values()])
    loss[5] *= 1.05
    assert fit_power_laws(x, loss).exponents == pytest.approx([LAW["a"], LAW["b"]], rel=0.02)


def random_problem(seed):
    """(N, D) and losses of a random law, random places and random noise, some with heavy tails."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(8, 50))
    sizes = np.exp(rng.uniform(np.log(1e7), np.log(1e10), int(rng.integers(3, 8))))
    x = np.column_stack([rng.choice(sizes, n), np.exp(rng.uniform(np.log(1e8), np.log(1e11), n))])
    exponents, terms = rng.uniform(0.1, 0.8, 2), rng.uniform(0.05, 1, 2)
    loss = rng.uniform(0, 2) + (terms * (x / [1e9, 1e10]) ** -exponents).sum(axis=1)
    return x, loss * np.exp(10 ** rng.uniform(-4, -1) * rng.standard_t(rng.choice([2, 50]), size=n))


@pytest.mark.parametrize("seed", range(12))
def test_no_other_start_of_ours_ends_lower(seed):
    """From 300 random places, in another order of magnitude each."""
    x, loss = random_problem(seed)
    fit = fit_power_laws(x, loss)
    rng = np.random.default_rng(seed)
    theta = np.column_stack([np.exp(rng.uniform(-5, 1, (300, 3))), np.exp(rng.uniform(-4, 1, (300, 2)))])
    found, cost = descend(fit.objective(x), theta, np.log(loss)[None])
    assert found.shape == (300, 5) and fit.cost <= cost.min() * (1 + 1e-9)


def test_a_fit_of_many_points_is_that_of_all_starts():
    """It begins with some of the points."""
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform((17, 20), (23, 27), size=(2500, 2)))
    loss = law(x[:, 0], x[:, 1]) * np.exp(0.005 * rng.normal(size=len(x)))
    fit = fit_power_laws(x, loss)
    objective = fit.objective(x)
    _, cost = descend(objective, starts(objective, loss), np.log(loss)[None])
    assert fit.cost == pytest.approx(cost.min(), rel=1e-9)


def on_both_sides(flops, away=0.01):
    """Losses of a power law, the outer two of four above it and the inner two below, in log loss `away`."""
    return 40 * flops**-0.1 * np.exp(away * np.array([1, -1, -1, 1]))


def test_no_exponent_where_several_fit_alike():
    """Four budgets evenly apart: with errors beyond delta, Huber's loss is that of absolute errors, and flat."""
    flops = np.geomspace(1e16, 1e18, 4)
    loss = on_both_sides(flops)
    slopes = [-np.log(loss[j] / loss[i]) / np.log(flops[j] / flops[i]) for i, j in ((0, 2), (1, 3))]
    costs = []
    for slope in np.linspace(min(slopes), max(slopes), 5)[1:-1]:
        level = np.log(loss) + slope * np.log(flops)
        errors = np.abs(level - np.median(level))
        costs.append((1e-3 * (errors - 5e-4)).sum())
    assert costs == pytest.approx([costs[0]] * 3, rel=1e-9) and np.ptp(slopes) > 0.005
    _, found = estimates(flops[:, None], loss, ("C",), floor=False)
    assert all("fit alike" in one.reason and np.isnan(one.value) for one in found)
    _, squares = estimates(flops[:, None], loss, ("C",), floor=False, delta=SQUARES)
    assert squares[1].value == pytest.approx(0.1) and not squares[1].reason


@pytest.mark.parametrize("count", [4, 12, 48])
def test_an_optimum_that_is_one_is_not_refused(count):
    """Not even with few points: the budgets of the full-size study, and a line's worth of others."""
    flops = np.array([1.6e16, 5.6e16, 1.6e17, 3.1e17]) if count == 4 else np.geomspace(1e16, 1e19, count)
    for seed in range(10):
        noise = np.random.default_rng(seed).normal(size=count)
        _, found = estimates(flops[:, None], 40 * flops**-0.1 * np.exp(0.004 * noise), ("C",), floor=False)
        assert found[1].low < found[1].value < found[1].high, found[1].reason


def test_a_held_parameter_keeps_its_value_and_the_rest_descends():
    x, loss = grid([n for n, _ in SIZES.values()], noise=0.01)
    fit = fit_power_laws(x, loss)
    objective, target = fit.objective(x), np.log(loss)[None]
    theta, cost = descend(objective, fit.theta[None] * [1, 1, 1, 1.3, 1], target, held=3)
    assert theta[0, 3] == fit.theta[3] * 1.3 and cost[0] > fit.cost
    for place in (0, 1, 2, 4):
        for step in (-1e-5, 1e-5):
            other = theta * (1 + step * (np.arange(5) == place))
            assert objective.cost(objective.predict(other) - target)[0] >= cost[0]


def test_the_grid_of_starts_takes_little_memory():
    """Predictions of all grid points for 20,000 points would take 64 MB, and their powers twice as much."""
    rng = np.random.default_rng(0)
    z = rng.uniform((-3, -3), (3, 3), size=(20_000, 2))
    loss = (1 + 0.3 * np.exp(-0.3 * z).sum(axis=1)) * np.exp(0.005 * rng.normal(size=len(z)))
    tracemalloc.start()
    found = starts(Objective(z, True, 1e-3), loss)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6 and found.shape[1] == 5


@pytest.mark.parametrize(("block", "degrees"), [(1, 37), (4, 9), (20, 1)])
def test_few_blocks_give_wide_intervals(block, degrees):
    """Student's t of as many degrees of freedom as there are blocks less one, or points less parameters."""
    x = np.geomspace(1e4, 1e6, 40)[:, None]
    loss = (1.1 + 14 * x[:, 0] ** -0.35) * np.exp(0.01 * np.random.default_rng(0).normal(size=40))
    fit = fit_power_laws(x, loss)
    drawn = np.abs(resampled_residuals(fit, x, 400, block) - np.log(fit.predict(x))).max()
    widened = np.sqrt(40 / 37) * t.ppf(0.975, degrees) / norm.ppf(0.975) * block_scale(fit.residuals, 3, block)
    assert drawn == pytest.approx(widened * np.abs(fit.residuals).max())


@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_blocks_spread_as_much_as_correlated_errors(rho):
    """The mean of drawn blocks spreads less than that of the errors; the scale makes up for it."""
    errors = correlated(20_000, rho, 1.0, seed=0)
    block = block_length(errors[:100])
    means = [errors[first : first + block].mean() for first in range(len(errors) - block)]
    drawn = block_scale(errors, 3, block) * np.std(means) * np.sqrt(block / len(errors))
    assert drawn == pytest.approx(np.sqrt((1 + rho) / (1 - rho) / len(errors)), rel=0.1)
    assert block_scale(errors, 3, 1) == 1 and block_scale(np.array([1.0, -1.0] * 20), 3, 4) == 1


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("delta", [1e-3, 1e6])
def test_the_optimum_is_stationary(log, delta):
    """The cost is higher a millionth away, on both sides alike up to the jump of its curvature at delta."""
    x, loss = grid([n for n, _ in SIZES.values()], noise=0.01)
    fit = fit_power_laws(x, loss, delta=delta, log=log)
    objective = fit.objective(x)
    target = objective.target(loss)
    for step in 1e-6 * np.diag(fit.theta):
        costs = objective.cost(objective.predict(np.stack([fit.theta - step, fit.theta, fit.theta + step])) - target)
        assert costs[1] < min(costs[0], costs[2])
        assert abs(costs[2] - costs[0]) < 0.5 * (costs[0] + costs[2] - 2 * costs[1])


def test_a_resample_has_residuals_of_their_sign():
    """Losses are skewed upwards; so must be what is drawn."""
    x = np.geomspace(1e4, 1e6, 60)
    noise = np.random.default_rng(0).exponential(0.01, 60)
    fit = fit_power_laws(x, (1 + 14 * x**-0.35) * np.exp(noise), delta=SQUARES)
    drawn = resampled_residuals(fit, x, 200) - fit.objective(x).predict(fit.theta[None])
    skew = [float((part**3).mean() / part.std() ** 3) for part in (-fit.residuals, drawn)]
    assert skew[0] > 0.5 and skew[1] == pytest.approx(skew[0], rel=0.2)
    assert 1 < drawn.std() / fit.residuals.std() < 1.2


@pytest.mark.parametrize(("count", "block"), [(12, 3), (12, 1), (7, 1)])
def test_a_bootstrapped_fit_is_the_fit_of_what_was_drawn(count, block):
    """Residuals in blocks, points, and residuals where there are too few points."""
    flops = np.geomspace(1e16, 1e19, count)[:, None]
    loss = (1 + 40 * flops[:, 0] ** -0.1) * np.exp(0.004 * np.random.default_rng(0).normal(size=count))
    fit = fit_power_laws(flops, loss)
    objective, theta = fit.objective(flops), bootstrap(fit, flops, 8, block=block, seed=5)
    points = resampling(count, 3, block) == "points"
    assert points == (count == 12 and block == 1)
    targets = np.tile(np.log(loss), (8, 1)) if points else resampled_residuals(fit, flops, 8, block=block, seed=5)
    weights = resampled_points(count, 8, seed=5) if points else np.ones((8, count))
    for drawn, weight, own in zip(targets, weights, theta, strict=True):
        begin = starts(objective, np.exp(drawn))
        lowest = descend(objective, begin, drawn[None], weights=np.tile(weight, (len(begin), 1)))[1].min()
        cost = objective.cost(objective.predict(own[None]) - drawn, weight)[0]
        assert cost == pytest.approx(lowest, rel=1e-3)


def test_drawn_points_are_counted_and_none_is_quite_left_out():
    """So that a draw of fewer points than parameters has an optimum too."""
    weights = resampled_points(8, 2000)
    counts = np.where(weights == LEAST, 0, weights)
    assert (counts.sum(axis=1) == 8).all() and (counts == counts.round()).all() and (weights > 0).all()
    assert (counts == 0).mean() == pytest.approx((7 / 8) ** 8, abs=0.01)


def test_intervals_are_as_wide_as_fits_differ_where_the_error_falls_with_n():
    """The error halves with every doubling of N; single residuals would give intervals a third as wide."""
    x, clean = grid(np.geomspace(1e7, 1e9, 40))
    noise = 0.02 * (x[:, 0] / 1e7) ** -1.0
    rng = np.random.default_rng(0)
    losses = clean * np.exp(noise * rng.normal(size=(300, len(x))))
    fit = fit_power_laws(x, losses[0])
    exponents, _ = descend(fit.objective(x), np.tile(fit.theta, (300, 1)), np.log(losses))
    drawn = [bootstrap(fit_power_laws(x, loss), x, 200) for loss in losses[:10]]
    width = np.mean([np.ptp(np.quantile(one[:, 3], [0.025, 0.975])) for one in drawn])
    assert width == pytest.approx(np.ptp(np.quantile(exponents[:, 3], [0.025, 0.975])), rel=0.25)


def test_blocks_are_as_long_as_the_correlation_asks():
    assert block_length(correlated(400, 0.0, 1.0, 0)) <= 4
    lengths = [block_length(correlated(400, rho, 1.0, 0)) for rho in (0.3, 0.6, 0.9)]
    assert lengths == sorted(lengths) and lengths[-1] > 20
    assert block_length(np.array([1.0, -1.0] * 20)) == 1 and block_length(np.zeros(20)) == 1
    assert block_length(correlated(20, 0.95, 1.0, 0)) <= 5  # a quarter of the rows


def runs_table(noise=0.0005):
    return pd.DataFrame([flatten(one) for one in study_summaries(noise=noise)])


def test_the_table_says_why_and_shows_starved_data():
    table = scaling_fits(runs_table())
    assert (table["identified"] == table["value"].notna()).all()
    assert (table["identified"] == (table["reason"] == "")).all()
    assert table["data_starved"].all() and (table["tokens_per_parameter"] < 20).all()
    joint = table[(table["architecture"] == "multi_token") & (table["parameter"] == "exponent_N")]
    assert joint["value"].item() == pytest.approx(LAW["a"], rel=0.1)
