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
