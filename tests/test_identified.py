"""`fvlm fit` says what the data cannot tell: terms that move together, and a term that is not there."""

import numpy as np
import pandas as pd
import pytest

from tests.fit_cases import joint_points, law, run


@pytest.mark.parametrize(("spread", "together"), [(0.005, True), (0.1, False)])
def test_samples_that_grow_with_parameters_cannot_be_told_from_them(tmp_path, spread, together):
    rng = np.random.default_rng(0)
    n = np.geomspace(1e7, 1e10, 40)
    table = pd.DataFrame({"N": n, "D": 20 * n * np.exp(spread * rng.normal(size=40))})
    found = run("fit", table.assign(L=law(table["N"], table["D"])), tmp_path)
    assert ("varies only together" in (found["reason"] or "")) == together


def test_a_term_that_is_not_there_is_seldom_found(tmp_path):
    """The loss does not depend on N: without intervals it is seldom taken for a term."""
    table, found = joint_points(noise=0), []
    for seed in range(40):
        noise = np.exp(0.005 * np.random.default_rng(seed).standard_t(4, size=len(table)))
        fit = run("fit", table.assign(L=(1.69 + 410.7 * table["D"] ** -0.28) * noise), tmp_path)
        found.append(fit["identified"])
    assert sum(found) <= 1


@pytest.mark.parametrize("lowest", [2, 5, 8])
def test_a_minimum_is_that_of_a_parabola_through_five_points(tmp_path, lowest):
    n = np.geomspace(1e7, 1e10, 11)
    log_n = np.log(n / n[lowest])
    table = pd.DataFrame({"C": 1e18, "N": n, "L": 2 + 0.02 * log_n**2 + 0.004 * np.abs(log_n) ** 3 + 0.003 * log_n})
    (budget,) = run("isoflop", table, tmp_path)["budgets"]
    near = slice(lowest - 2, lowest + 3)
    curvature, slope, _ = np.polyfit(log_n[near], table["L"][near], 2)
    assert budget["N_opt"] == pytest.approx(n[lowest] * np.exp(-slope / (2 * curvature)), rel=1e-9)
