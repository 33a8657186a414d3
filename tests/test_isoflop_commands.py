"""`fvlm isoflop` and `fvlm envelope` on files of a user's own."""

import numpy as np
import pandas as pd
import pytest

from tests.fit_cases import A_OPT, grid, law, refuse, run, training_curves

# --- isoflop ---


def test_isoflop_minima_are_those_of_the_law(tmp_path):
    found = run("isoflop", grid(), tmp_path)
    assert found["a"] == pytest.approx(A_OPT, abs=0.005) and found["b"] == pytest.approx(1 - A_OPT, abs=0.005)
    assert found["n"] == 78 and found["identified"] is True
    dense = np.geomspace(2e7, 2e10, 20001)
    for row in found["budgets"]:
        best = law(dense, row["C"] / 6 / dense)
        assert np.log(row["N_opt"] / dense[np.argmin(best)]) == pytest.approx(0, abs=0.05)
        assert row["L_opt"] == pytest.approx(best.min(), rel=2e-4)
        assert row["edge"] is False and row["used"] is True


def test_isoflop_with_noise_holds_the_exponent(tmp_path):
    inside = []
    for seed in range(40):
        found = run("isoflop", grid(noise=0.001, seed=seed).drop(columns="D"), tmp_path)
        assert found["b"] is None and all(row["D_opt"] is None for row in found["budgets"])
        inside.append(found["ci"]["a"][0] <= A_OPT <= found["ci"]["a"][1])
    assert np.mean(inside) >= 0.85


def test_minima_at_the_edge_are_marked_and_left_out(tmp_path):
    found = run("isoflop", grid(low=4e8), tmp_path)
    edges = [row["edge"] for row in found["budgets"]]
    assert edges == [True, True, False, False, False, False]
    assert all("smallest size is best" in row["reason"] for row in found["budgets"][:2])
    assert found["a"] == pytest.approx(A_OPT, abs=0.01)
    assert "largest size is best" in run("isoflop", grid(high=1.6e8), tmp_path)["budgets"][-1]["reason"]
    few = run("isoflop", grid(low=1.2e9), tmp_path)
    assert few["a"] is None and few["ci"]["a"] is None and few["identified"] is False
    assert "2 of 6 minima lie inside the sizes" in few["reason"]


def test_budgets_are_separated_by_their_gaps(tmp_path):
    table = grid()
    rng = np.random.default_rng(0)
    spent = table.assign(C=table["C"] * np.exp(rng.uniform(-0.01, 0.01, len(table))))
    found = run("isoflop", spent, tmp_path)
    assert len(found["budgets"]) == 6 and found["a"] == pytest.approx(A_OPT, abs=0.01)


def test_budgets_without_gaps_are_refused(tmp_path, capsys):
    table = grid().iloc[:26].assign(C=np.geomspace(1e18, 3e18, 26))
    assert "no gap of 5 % between the budgets" in refuse("isoflop", table, tmp_path, capsys)


@pytest.mark.parametrize("lowest", [2, 5, 8])
def test_a_minimum_is_that_of_a_parabola_through_five_points(tmp_path, lowest):
    n = np.geomspace(1e7, 1e10, 11)
    log_n = np.log(n / n[lowest])
    table = pd.DataFrame({"C": 1e18, "N": n, "L": 2 + 0.02 * log_n**2 + 0.004 * np.abs(log_n) ** 3 + 0.003 * log_n})
    (budget,) = run("isoflop", table, tmp_path)["budgets"]
    near = slice(lowest - 2, lowest + 3)
    curvature, slope, _ = np.polyfit(log_n[near], table["L"][near], 2)
    assert budget["N_opt"] == pytest.approx(n[lowest] * np.exp(-slope / (2 * curvature)), rel=1e-9)


# --- envelope ---


def test_envelope_follows_the_law(tmp_path):
    found = run("envelope", training_curves(), tmp_path)
    assert found["a"] == pytest.approx(A_OPT, abs=0.01) and found["b"] == pytest.approx(1 - A_OPT, abs=0.01)
    for row in found["changes"]:
        dense = np.geomspace(2e7, 2e10, 20001)
        best = dense[np.argmin(law(dense, row["C"] / 6 / dense))]
        assert np.log(row["N_opt"] / best) == pytest.approx(0, abs=0.2)
    noisy = run("envelope", training_curves(noise=0.0005, seed=1), tmp_path)
    assert noisy["a"] == pytest.approx(A_OPT, abs=0.03)
    assert noisy["ci"]["a"][0] < A_OPT < noisy["ci"]["a"][1]


def test_envelope_marks_budgets_with_one_size_and_at_the_edge(tmp_path):
    found = run("envelope", training_curves(), tmp_path, "--budgets", "100")
    rows = found["budgets"]
    assert len(rows) == 100 and rows[0]["edge"] and rows[-1]["edge"]
    assert "one size alone" in rows[0]["reason"] and rows[0]["sizes"] == 1 and not rows[0]["used"]
    assert any("smallest size is best" in (row["reason"] or "") for row in rows)
    curves = training_curves().set_index("run")
    for row in rows:
        if row["used"]:
            own = curves.loc[row["run"]]
            assert row["N_opt"] == own["N"].iloc[0] and row["reason"] is None
            assert row["L_opt"] == pytest.approx(law(row["N_opt"], row["C"] / 6 / row["N_opt"]), rel=1e-3)


def test_envelope_of_three_sizes_gives_no_exponent(tmp_path):
    found = run("envelope", training_curves(sizes=3).rename(columns={"run": "run_id", "C": "flops"}), tmp_path)
    assert found["a"] is None and found["ci"]["a"] is None and "an exponent needs three" in found["reason"]
    mixed = training_curves().assign(lr_schedule="cosine")
    mixed.loc[mixed["run"] == "r3", "lr_schedule"] = "constant"
    assert "mixed" in run("envelope", mixed, tmp_path)["reason"]


def test_an_envelope_of_sparse_curves_has_a_warning(tmp_path):
    assert not run("envelope", training_curves(), tmp_path)["warnings"]
    found = run("envelope", training_curves(points=5), tmp_path)
    assert "13 of 13 curves (r0, ...) have neighbouring points more than 2 times apart" in found["warnings"][0]


def test_a_moving_mean_takes_the_noise_out_of_an_envelope(tmp_path):
    curves = training_curves(noise=0.01, points=400, seed=2)
    raw, smooth = (run("envelope", curves, tmp_path, "--smooth", k) for k in ("1", "25"))
    off = [
        np.mean([abs(np.log(row["L_opt"] / law(row["N_opt"], row["C"] / 6 / row["N_opt"]))) for row in one["budgets"]])
        for one in (raw, smooth)
    ]
    assert off[1] < 0.5 * off[0] and smooth["a"] == pytest.approx(A_OPT, abs=0.06)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns="run"), "no column 'run' or 'run_id'"),
        (lambda t: t.drop(columns="C"), "no column 'C' or 'flops'"),
        (lambda t: t.assign(N=np.arange(1.0, len(t) + 1)), "run r0 has 60 values of N"),
        (lambda t: pd.concat([t, t.iloc[:1].assign(L=9.0)]), "run r0 has two losses at C = "),
        (lambda t: t.assign(L=t["L"].where(t["run"] != "r2", t["L"].to_numpy()[::-1])), "rises with C in run r2"),
    ],
)
def test_envelope_refuses_broken_curves(tmp_path, capsys, change, words):
    assert words in refuse("envelope", change(training_curves()), tmp_path, capsys)
