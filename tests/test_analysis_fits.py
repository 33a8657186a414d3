"""Fits find the constants that made the data, and refuse what the data cannot say."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares

from fvlm.analysis.collect import flatten
from fvlm.analysis.fits import estimates, fit_power_laws
from fvlm.analysis.isoflop import isoflop
from fvlm.analysis.scaling import scaling_fits
from tests.analysis_cases import BUDGETS, LAW, SIZES, law, study_summaries

# The first study's data: named by the environment, or in a folder beside the checkout.
BESIDE = next(Path(__file__).parents[2].glob("*/reference"), Path("reference"))
REFERENCE = Path(os.environ.get("FVLM_TEST_REFERENCE", BESIDE))


def grid(sizes, noise=0.0, seed=0):
    """(N, D) and losses of sizes x budgets."""
    rng = np.random.default_rng(seed)
    x = np.array([(n, flops / (1500 * n)) for n in sizes for flops in BUDGETS.values()])
    return x, law(x[:, 0], x[:, 1]) * np.exp(noise * rng.normal(size=len(x)))


@pytest.mark.parametrize("floor", [0.0, 1.1])
def test_one_variable_without_noise_is_exact(floor):
    x = np.geomspace(1e4, 1e6, 9)
    fit = fit_power_laws(x, floor + 14 * x**-0.35, floor=floor > 0)
    assert fit.exponents[0] == pytest.approx(0.35, rel=1e-5)
    assert fit.coefficients[0] == pytest.approx(14, rel=1e-4)
    assert fit.limit == pytest.approx(floor, abs=1e-5)


def test_chinchilla_without_noise_is_exact():
    x, loss = grid([n for n, _ in SIZES.values()])
    fit = fit_power_laws(x, loss)
    assert fit.exponents == pytest.approx([LAW["a"], LAW["b"]], rel=1e-4)
    assert fit.coefficients == pytest.approx([LAW["A"], LAW["B"]], rel=1e-2)
    assert fit.limit == pytest.approx(LAW["E"], abs=1e-4)
    assert fit.predict(x) == pytest.approx(loss, rel=1e-6)


def test_chinchilla_with_noise_covers_the_constants():
    x, loss = grid([n for n, _ in SIZES.values()], noise=0.001)
    _, found = estimates(x, loss, ("N", "D"))
    truth = {
        "E": LAW["E"],
        "A_N": LAW["A"],
        "exponent_N": LAW["a"],
        "A_D": LAW["B"],
        "exponent_D": LAW["b"],
        "N_opt_exponent": LAW["b"] / (LAW["a"] + LAW["b"]),
        "D_opt_exponent": LAW["a"] / (LAW["a"] + LAW["b"]),
    }
    assert {one.name for one in found} == set(truth)
    for one in found:
        assert not one.reason
        width = one.high - one.low
        assert one.low - 0.5 * width < truth[one.name] < one.high + 0.5 * width


def test_one_outlier_hardly_moves_the_fit():
    x, loss = grid([n for n, _ in SIZES.values()])
    loss[5] *= 1.05
    assert fit_power_laws(x, loss).exponents == pytest.approx([LAW["a"], LAW["b"]], rel=0.02)


def test_the_optimum_is_that_of_a_library_optimizer():
    x, loss = grid([n for n, _ in SIZES.values()], noise=0.01)
    fit = fit_power_laws(x, loss)
    z = np.log(x / fit.centre)

    def residuals(theta):
        return np.log(theta[0] + (theta[1:3] * np.exp(-theta[3:] * z)).sum(axis=1)) - np.log(loss)

    found = least_squares(
        residuals,
        [0.9, 0.4, 0.3, 0.3, 0.3],
        loss="huber",
        f_scale=1e-3,
        bounds=(0, [9, 9, 9, 3, 3]),
        ftol=1e-15,
        xtol=1e-15,
        gtol=1e-15,
    )
    size = np.abs(fit.residuals)
    cost = np.where(size <= 1e-3, size**2 / 2, 1e-3 * (size - 5e-4)).sum()
    assert cost <= found.cost * (1 + 1e-6)


def test_two_model_sizes_are_refused():
    x, loss = grid([1.6e8, 3.9e8], noise=0.001)
    _, found = estimates(x, loss, ("N", "D"))
    found = {one.name: one for one in found}
    for name in ("E", "A_N", "exponent_N", "N_opt_exponent", "D_opt_exponent"):
        assert "2 values of N" in found[name].reason
        assert np.isnan([found[name].value, found[name].low, found[name].high]).all()


def test_a_vanishing_term_is_refused():
    x, _ = grid([n for n, _ in SIZES.values()])
    flat = 1.3 + LAW["B"] * x[:, 1] ** -LAW["b"]
    _, found = estimates(x, flat * np.exp(0.002 * np.random.default_rng(0).normal(size=len(x))), ("N", "D"))
    assert {one.name: bool(one.reason) for one in found}["exponent_N"]


def test_too_few_points_are_refused():
    fit, found = estimates(np.array([1e3, 1e4, 1e5]), np.array([3.0, 2.0, 1.5]), ("D",))
    assert fit is None and all("3 points cannot carry 3 parameters" in one.reason for one in found)


def runs_table(noise=0.0005):
    return pd.DataFrame([flatten(one) for one in study_summaries(noise=noise)])


def test_the_table_says_why_and_shows_starved_data():
    table = scaling_fits(runs_table())
    assert (table["identified"] == table["value"].notna()).all()
    assert (table["identified"] == (table["reason"] == "")).all()
    assert table["data_starved"].all() and (table["tokens_per_parameter"] < 20).all()
    joint = table[(table["architecture"] == "multi_token") & (table["parameter"] == "exponent_N")]
    assert joint["value"].item() == pytest.approx(LAW["a"], rel=0.1)


def test_isoflop_minima_lie_on_the_law_and_edges_are_left_out():
    """Many sizes: the minimum of the law at fixed C = k N D is known."""
    rows = []
    for budget, flops in BUDGETS.items():
        for i, n in enumerate(np.geomspace(5e7, 4e9, 9)):
            loss = law(n, flops / (1500 * n))
            rows.append(
                {
                    "family": "grid",
                    "architecture": "foveated",
                    "size": str(i),
                    "budget": budget,
                    "params_total": n,
                    "samples": flops / (1500 * n),
                    "flops": flops,
                    "flops_budget": flops,
                    "final.val_loss": loss,
                    "text_tokens": 1.0,
                    "frames": 1.0,
                    "visual_tokens": 1,
                }
            )
    found = isoflop(pd.DataFrame(rows)).set_index("budget")
    dense = np.geomspace(5e7, 4e9, 4001)
    for budget, flops in BUDGETS.items():
        assert found.loc[budget, "used"]
        best = dense[np.argmin(law(dense, flops / (1500 * dense)))]
        assert np.log(found.loc[budget, "n_opt"] / best) == pytest.approx(0, abs=0.1)
    small = isoflop(pd.DataFrame([row for row in rows if row["params_total"] < 1.6e8]))
    assert not small["used"].any() and small["reason"].str.contains("largest size is best").all()


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference data (FVLM_TEST_REFERENCE)")
class TestReference:
    """The first study's evaluation points: L = a D^-b + E, D in samples."""

    points = staticmethod(lambda: pd.read_csv(REFERENCE / "release_scaling_data" / "all_eval_points.csv"))

    def test_the_constant_rate_run_of_135m(self):
        own = self.points().query("run_id == '135M-scaling'")
        x, loss = own["samples_seen"].to_numpy(float), own["val_loss"].to_numpy()
        squares = fit_power_laws(x, loss, delta=1.0)
        assert squares.coefficients[0] == pytest.approx(13.73, rel=0.1)
        assert squares.exponents[0] == pytest.approx(0.346, abs=0.01)
        assert squares.limit == pytest.approx(1.057, abs=0.01)
        _, found = estimates(x, loss, ("D",), block=10)
        found = {one.name: one for one in found}
        for name, value in (("A_D", 13.73), ("exponent_D", 0.346), ("E", 1.057)):
            assert found[name].low < value < found[name].high

    def test_360m_is_not_identified(self):
        own = self.points().query("run_id == '360M-scaling'")
        _, found = estimates(own["samples_seen"].to_numpy(float), own["val_loss"].to_numpy(), ("D",), block=10)
        assert all("too wide" in one.reason for one in found)

    def test_two_sizes_cannot_give_the_joint_fit(self):
        own = self.points().query("run_id in ['135M-scaling', '360M-scaling']")
        x = np.column_stack([own["model_size"].map({"135M": 157.6e6, "360M": 382.6e6}), own["samples_seen"]])
        _, found = estimates(x, own["val_loss"].to_numpy(), ("N", "D"), block=10)
        assert all(one.reason for one in found if one.name not in ("A_D", "exponent_D"))
