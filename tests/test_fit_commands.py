"""fvlm fit and powerlaw find known laws and leave null what the data do not identify. All four fits refuse bad input in
one sentence."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fvlm.__main__ import COMMANDS
from fvlm.analysis.fits.points import read_points
from fvlm.errors import UserError
from tests.fit_cases import A_OPT, LAW, correlated, grid, joint_points, law, refuse, run, training_curves
from tests.test_analysis_fits import REFERENCE

ROOT = Path(__file__).resolve().parents[1]
FITS = ("fit", "powerlaw", "isoflop", "envelope")
COMPARISONS = ("gap", "factorial", "rank", "check-curves")
REFUSED = ("alpha", "a", "b", "N_opt")

# --- fit ---


def test_fit_without_noise_is_the_law(tmp_path):
    found = run("fit", joint_points(noise=0), tmp_path)
    for name, value in {**LAW, "a": A_OPT, "b": 1 - A_OPT}.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert found["identified"] is True and found["reason"] is None and found["n"] == 48
    assert found["objective"] < 1e-12 and found["ci"] is None and found["method"]


def test_n_opt_is_where_the_fitted_loss_is_lowest(tmp_path):
    found = run("fit", joint_points(), tmp_path, "--budget", "1e21", "--flops-per-nd", "7")
    n = np.geomspace(1e8, 1e11, 200_001)
    loss = found["A"] * n ** -found["alpha"] + found["B"] * (1e21 / 7 / n) ** -found["beta"]
    assert found["N_opt"] == pytest.approx(n[np.argmin(loss)], rel=1e-3)
    assert found["N_opt"] * found["D_opt"] == pytest.approx(1e21 / 7)


def test_fit_with_intervals_holds_the_law_and_depends_on_the_seed_alone(tmp_path):
    table = joint_points(seed=3)
    found = run("fit", table, tmp_path, "--bootstrap", "400", "--seed", "1")
    for name, value in {**LAW, "a": A_OPT, "b": 1 - A_OPT}.items():
        low, high = found["ci"][name]
        assert low < found[name] < high
        assert low - (high - low) / 4 < value < high + (high - low) / 4, name
    assert found["bootstrap"]["draws"] == 400
    assert run("fit", table, tmp_path, "--bootstrap", "400", "--seed", "1") == found
    other = run("fit", table, tmp_path, "--bootstrap", "400", "--seed", "2")
    assert other["ci"] != found["ci"] and other["alpha"] == found["alpha"]


@pytest.mark.parametrize("scales", [(1e9, 1e-9), (3.7e-9, 1.0)])
def test_fit_does_not_depend_on_the_units(tmp_path, scales):
    for seed in range(3):
        table = joint_points(seed=seed)
        found = run("fit", table, tmp_path, "--budget", "1e21")
        scaled = table.assign(N=table["N"] * scales[0], D=table["D"] * scales[1])
        budget = 1e21 * scales[0] * scales[1]
        other = run("fit", scaled, tmp_path, "--budget", repr(budget))
        for name in ("E", "alpha", "beta", "a", "b", "objective"):
            assert other[name] == pytest.approx(found[name], rel=1e-6), name
        assert other["A"] == pytest.approx(found["A"] * scales[0] ** found["alpha"], rel=1e-5)
        assert other["B"] == pytest.approx(found["B"] * scales[1] ** found["beta"], rel=1e-5)
        assert other["N_opt"] == pytest.approx(found["N_opt"] * scales[0], rel=1e-5)


def test_the_best_size_is_for_flops_as_the_file_counts_them(tmp_path):
    table = joint_points()
    table = table.assign(C=18 * table["N"] * table["D"])
    plain, own = (run("fit", table, tmp_path, *options) for options in ((), ("--flops-per-nd", "C")))
    assert plain["flops_per_ND"] == 6 and own["flops_per_ND"] == pytest.approx(18)
    assert own["budget"] == pytest.approx(table["C"].max()) and own["N_opt"] == pytest.approx(plain["N_opt"])


def test_fit_does_not_depend_on_the_order_of_rows_or_on_other_columns(tmp_path):
    table = joint_points()
    found = run("fit", table, tmp_path)
    shuffled = table.sample(frac=1, random_state=0).assign(note="x, y", empty="")[["note", "L", "D", "empty", "N"]]
    other = run("fit", shuffled, tmp_path)
    for name in ("E", "A", "B", "alpha", "beta", "objective"):
        assert other[name] == pytest.approx(found[name], rel=1e-6)


def refused(found: dict) -> str:
    assert found["identified"] is False
    assert all(found[name] is None for name in REFUSED), found
    assert all(found["ci"][name] is None for name in REFUSED) if found["ci"] else True
    return found["reason"]


@pytest.mark.parametrize("options", [(), ("--bootstrap", "100")])
def test_two_sizes_give_no_exponent(tmp_path, options):
    table = joint_points()
    two = table[table["N"].isin(sorted(table["N"].unique())[2:4])]
    found = run("fit", two, tmp_path, *options)
    assert refused(found) == "2 values of N; an exponent needs three"
    assert found["E"] is None and found["A"] is None and found["n"] == 12 and found["objective"] > 0


def test_sizes_that_differ_by_less_than_a_percent_are_one(tmp_path):
    table = joint_points()
    two = table[table["N"].isin(sorted(table["N"].unique())[2:4])]
    near = pd.concat([two, two.assign(N=two["N"] * 1.004, L=two["L"] * 1.001)])
    assert "2 values of N" in refused(run("fit", near, tmp_path))


@pytest.mark.parametrize("options", [(), ("--bootstrap", "200")])
def test_a_vanishing_term_gives_no_exponent(tmp_path, options):
    table = joint_points()
    rng = np.random.default_rng(1)
    flat = (1.9 + LAW["B"] * table["D"] ** -LAW["beta"]) * np.exp(0.003 * rng.normal(size=len(table)))
    reason = refused(run("fit", table.assign(L=flat), tmp_path, *options))
    assert "the N term vanishes" in reason or "ran into its bound" in reason


@pytest.mark.parametrize(("spread", "together"), [(0.005, True), (0.1, False)])
def test_samples_that_grow_with_parameters_give_no_exponent(tmp_path, spread, together):
    rng = np.random.default_rng(0)
    n = np.geomspace(1e7, 1e10, 40)
    table = pd.DataFrame({"N": n, "D": 20 * n * np.exp(spread * rng.normal(size=40))})
    found = run("fit", table.assign(L=law(table["N"], table["D"])), tmp_path)
    assert ("varies only together" in (found["reason"] or "")) == together


def test_a_missing_term_is_seldom_called_identified(tmp_path):
    """The loss does not depend on N, and no intervals show it."""
    table, identified = joint_points(noise=0), []
    for seed in range(40):
        noise = np.exp(0.005 * np.random.default_rng(seed).standard_t(4, size=len(table)))
        fit = run("fit", table.assign(L=(1.69 + 410.7 * table["D"] ** -0.28) * noise), tmp_path)
        identified.append(fit["identified"])
    assert sum(identified) <= 1


def test_mixed_schedules_give_nothing(tmp_path):
    table = joint_points()
    kinds = np.where(np.arange(len(table)) % 2, "cosine", "constant")
    found = run("fit", table.assign(lr_schedule=kinds), tmp_path, "--bootstrap", "50")
    assert "2 learning-rate schedules are mixed" in refused(found) and "cosine: 24 points" in found["reason"]
    assert found["E"] is None and found["beta"] is None
    assert run("fit", table.assign(lr_schedule="cosine"), tmp_path)["identified"] is True


def test_an_exponent_at_its_bound_is_no_exponent(tmp_path):
    table = joint_points()
    steep = 2 + 0.5 * (table["N"] / 1e8) ** -5.0 + 0.3 * (table["D"] / 1e10) ** -0.3
    assert "exponent of N ran into its bound 3" in refused(run("fit", table.assign(L=steep), tmp_path))


def test_an_interval_that_is_too_wide_is_seen_by_the_bootstrap(tmp_path):
    table = joint_points(sizes=4, budgets=3, noise=0.02)
    assert run("fit", table, tmp_path)["identified"] is True
    assert "too wide" in refused(run("fit", table, tmp_path, "--bootstrap", "300"))


def test_five_points_carry_no_fit(tmp_path):
    found = run("fit", joint_points().iloc[::9].iloc[:5], tmp_path, "--bootstrap", "50")
    assert refused(found) == "5 points cannot carry 5 parameters and an error"
    assert found["objective"] is None


def test_intervals_cover_the_law_about_as_often_as_they_say(tmp_path):
    inside = []
    for seed in range(40):
        found = run("fit", joint_points(sizes=5, budgets=4, noise=0.001, seed=seed), tmp_path, "--bootstrap", "200")
        truth = {"alpha": LAW["alpha"], "beta": LAW["beta"], "a": A_OPT}
        inside += [found["ci"][name][0] <= value <= found["ci"][name][1] for name, value in truth.items()]
    assert 0.85 <= np.mean(inside) <= 0.995  # 120 of them, three by three dependent


# --- powerlaw ---


def power_points(noise=0.0, n=12, seed=0, floor=1.1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    c = np.geomspace(1e16, 1e20, n)
    return pd.DataFrame({"C": c, "L": (floor + 60 * c**-0.1) * np.exp(noise * rng.normal(size=n))})


def test_powerlaw_finds_the_law_of_each_architecture(tmp_path):
    table = pd.concat([power_points().assign(architecture="one"), power_points(floor=2.0).assign(architecture="two")])
    found = run("powerlaw", table, tmp_path)
    assert list(found["fits"]) == ["one", "two"] and found["n"] == 24
    for name, floor in (("one", 1.1), ("two", 2.0)):
        one = found["fits"][name]
        assert [one["A"], one["alpha"], one["L_inf"]] == pytest.approx([60, 0.1, floor], rel=1e-3)
        assert one["identified"] is True and one["n"] == 12


@pytest.mark.parametrize("loss", ["huber", "squares"])
def test_powerlaw_in_any_column(tmp_path, loss):
    table = power_points(noise=1e-4).rename(columns={"C": "D"})
    one = run("powerlaw", table, tmp_path, "--x", "D", "--loss", loss)["fits"]["all"]
    assert one["ci"]["alpha"][0] < 0.1 < one["ci"]["alpha"][1] and one["block"] == 1


def test_one_curve_is_drawn_in_blocks_and_its_intervals_are_wider(tmp_path):
    table = power_points(n=200)
    table["L"] *= np.exp(correlated(200, 0.9, 0.002, seed=0))
    apart = run("powerlaw", table, tmp_path)["fits"]["all"]
    curve = run("powerlaw", table.assign(run="r"), tmp_path)["fits"]["all"]
    chosen = run("powerlaw", table, tmp_path, "--block", str(curve["block"]))["fits"]["all"]
    assert apart["block"] == 1 and 10 <= curve["block"] <= 50
    assert chosen["ci"] == curve["ci"] and curve["optimum"] == apart["optimum"]
    width = [one["ci"]["alpha"] and np.ptp(one["ci"]["alpha"]) for one in (apart, curve)]
    assert width[1] is None or width[1] > 1.5 * width[0]


def test_block_intervals_cover_the_law_of_a_correlated_curve(tmp_path):
    inside = {"blocks": [], "apart": []}
    for seed in range(40):
        d = np.linspace(1e4, 3e5, 80)
        loss = (1.05 + 13.7 * d**-0.35) * np.exp(correlated(80, 0.7, 0.004, seed))
        table = pd.DataFrame({"D": d, "L": loss})
        for name, own in (("blocks", table.assign(run="r")), ("apart", table)):
            one = run("powerlaw", own, tmp_path, "--x", "D", "--loss", "squares", "--bootstrap", "200")["fits"]["all"]
            inside[name].append(one["ci"]["alpha"] is None or one["ci"]["alpha"][0] <= 0.35 <= one["ci"]["alpha"][1])
    assert np.mean(inside["blocks"]) >= 0.75 and np.mean(inside["blocks"]) > np.mean(inside["apart"]) + 0.1


def test_a_straight_line_has_no_floor(tmp_path):
    table = power_points(noise=1e-4, floor=0.0)
    one = run("powerlaw", table, tmp_path)["fits"]["all"]
    assert one["L_inf"] is None and "floor reaches zero" in one["reasons"]["L_inf"]
    assert one["alpha"] == pytest.approx(0.1, rel=0.1)


def test_a_frontier_is_the_lowest_point_at_each_budget(tmp_path):
    table = power_points()
    both = pd.concat([table, table.assign(L=table["L"] * 1.1)])
    found = run("powerlaw", both, tmp_path, "--lowest")["fits"]["all"]
    assert found["n"] == 12 and found["L_inf"] == pytest.approx(1.1, rel=1e-3) and not found["warnings"]
    assert any("--lowest" in text for text in run("powerlaw", both, tmp_path)["fits"]["all"]["warnings"])


def test_powerlaw_by_a_column_of_some_rows(tmp_path, capsys):
    one, two = power_points().assign(size="small", run="a"), power_points(floor=2.0).assign(size="", run="b")
    rises = power_points().assign(size="large", run="c", L=lambda own: own["L"][::-1].to_numpy())
    table = pd.concat([one, two, rises])
    assert list(run("powerlaw", table, tmp_path, "--by", "size", "--keep", "run=a,b")["fits"]) == ["small"]
    assert list(run("powerlaw", table, tmp_path, "--by", "run", "--keep", "run=a,b")["fits"]) == ["a", "b"]
    capsys.readouterr()
    for options, expected in {
        ("--by", "size"): "rises with C for large",
        ("--by", "shape"): "no column 'shape'",
        ("--by", "size", "--keep", "run=b"): "no row has a word in size",
        ("--by", "L"): "expected a column that separates",
        ("--by", "C"): "expected a column that separates",
    }.items():
        assert expected in refuse("powerlaw", table, tmp_path, capsys, *options)


def test_curves_with_a_decaying_rate_are_not_pooled(tmp_path):
    table = power_points(n=24).assign(run=["a", "b"] * 12)
    assert run("powerlaw", table.assign(lr_schedule="constant"), tmp_path)["fits"]["all"]["identified"]
    assert run("powerlaw", table.assign(lr_schedule=""), tmp_path)["fits"]["all"]["identified"]
    one = run("powerlaw", table.assign(lr_schedule="cosine"), tmp_path)["fits"]["all"]
    assert one["alpha"] is None and "2 runs whose learning rate decays (cosine)" in one["reason"] and one["optimum"]
    ends = power_points().assign(run=[f"r{i}" for i in range(12)], lr_schedule="cosine")
    assert run("powerlaw", ends, tmp_path)["fits"]["all"]["identified"]


def test_three_points_or_two_schedules_give_no_power_law(tmp_path):
    one = run("powerlaw", power_points(n=3), tmp_path)["fits"]["all"]
    assert one["alpha"] is None and "3 points cannot carry 3 parameters" in one["reason"]
    mixed = power_points().assign(lr_schedule=["constant", "cosine"] * 6)
    one = run("powerlaw", mixed, tmp_path)["fits"]["all"]
    assert one["identified"] is False and one["alpha"] is None and one["L_inf"] is None and "mixed" in one["reason"]


# --- bad input, for all ---

BAD = {
    "no column": (lambda t: t.drop(columns="L"), "no column 'L'; found"),
    "empty cell": (lambda t: t.assign(L=t["L"].where(t.index != 3)), "row 5: L is empty"),
    "not a number": (lambda t: t.assign(L=t["L"].astype(object).where(t.index != 3, "nan")), "row 5: L is nan"),
    "infinite": (lambda t: t.assign(L=t["L"].where(t.index != 2, np.inf)), "row 4: L is inf"),
    "text": (lambda t: t.assign(L=t["L"].astype(object).where(t.index != 2, "low")), "row 4: L is 'low'"),
    "zero": (lambda t: t.assign(C=t["C"].where(t.index != 2, 0.0)), "row 4: C is 0.0; expected a positive"),
    "negative": (lambda t: t.assign(L=t["L"].where(t.index != 2, -1.0)), "row 4: L is -1.0; expected a positive"),
    "twice": (lambda t: pd.concat([t, t.iloc[4:5]]), "have the same"),
    "one point": (lambda t: t.iloc[:1], "1 row below the header; expected 2 or more"),
    "no points": (lambda t: t.iloc[:0], "0 rows below the header"),
    "nothing": (lambda t: "", "the file is empty"),
    "ragged": (lambda t: "run,N,D,C,L\nr,1,1,1,2\nr,1,1,1\n", "row 3: 4 cells where the header has 5"),
    "binary": (lambda t: "run,N,D,C,L\nr,1,1,1,1\nr,1,1,2,\x00\n", "it holds null bytes"),
    "rising": (lambda t: t.assign(L=1 / t["L"]), "the loss L rises with"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("command", FITS)
def test_bad_input_is_one_sentence(tmp_path, capsys, command, name):
    if (command, name) == ("fit", "zero"):
        pytest.skip("fit reads no C")
    change, words = BAD[name]
    table = {"envelope": training_curves, "isoflop": grid}.get(command, joint_points)()
    if command == "powerlaw":
        table = table.groupby("C", as_index=False).agg({"N": "first", "D": "first", "L": "min"})
    assert words in refuse(command, change(table), tmp_path, capsys)


def test_a_file_as_a_spreadsheet_writes_it_is_read(tmp_path):
    """A byte order mark, Windows line ends, quotes, spaces, blank lines at the end."""
    path = tmp_path / "points.csv"
    path.write_bytes('\ufeffN, D ,"L",note\r\n1e8,"2e9",2.5,"a, b"\r\n2e8, 2e9,2.25,\r\n\r\n,,,\r\n'.encode())
    table = read_points(path, ("N", "D", "L"), positive=("N", "D", "L"))
    assert table.to_dict("list") == {"N": [1e8, 2e8], "D": [2e9, 2e9], "L": [2.5, 2.25]}


def test_rows_are_counted_as_in_the_file(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("run,L\nr,1\n\nr,2\nr,1_0\n")
    with pytest.raises(UserError, match="row 5: L is '1_0'"):
        read_points(path, ("L",))
    path.write_text("run,L\nr,1\n,2\n")
    assert list(read_points(path, ("L",), optional=("run",), text=("run",))["run"]) == ["r", ""]
    with pytest.raises(UserError, match="row 3: run is empty"):
        read_points(path, ("run", "L"), text=("run",))


def test_the_page_runs(tmp_path):
    """Every command of docs/fits.md, in its order."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs/fits.md").read_text(), re.MULTILINE | re.DOTALL)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PATH": path}
    script = 'fvlm() { python -m fvlm "$@"; }\n' + "\n".join(blocks)
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=environment, check=True, capture_output=True)
    for name, points in (("power", {"all": 6}), ("curve", {"size-5": 60, "size-6": 60})):
        fits = json.loads((tmp_path / f"{name}.json").read_text())["fits"]
        assert {key: one["n"] for key, one in fits.items()} == points
    for name in ("fit", "iso", "envelope"):
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found["identified"] is True and found["a"] == pytest.approx(A_OPT, abs=0.03)


def test_no_command_imports_what_is_slow():
    modules = [COMMANDS[name][0] for name in FITS + COMPARISONS]
    heavy = "{'torch', 'transformers', 'matplotlib', 'scipy.optimize', 'scipy.stats', 'scipy.interpolate'}"
    code = f"import sys, {', '.join(modules)}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the first study's data ---


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference data (FVLM_TEST_REFERENCE)")
class TestReference:
    """Evaluation points of the first study; D is samples, N total parameters."""

    @staticmethod
    def points() -> pd.DataFrame:
        table = pd.read_csv(REFERENCE / "release_scaling_data" / "all_eval_points.csv")
        sizes = table["model_size"].map({"135M": 157.6e6, "360M": 382.6e6})
        return table.assign(N=sizes, D=table["samples_seen"].astype(float), L=table["val_loss"])

    def power(self, query, folder) -> dict:
        return run("powerlaw", self.points().query(query), folder, "--x", "D", "--loss", "squares")["fits"]["all"]

    def test_135m_at_a_constant_rate(self, tmp_path):
        one = self.power("run_id == '135M-scaling'", tmp_path)
        assert one["A"] == pytest.approx(13.73, abs=0.01)
        assert one["alpha"] == pytest.approx(0.346, abs=0.001)
        assert one["L_inf"] == pytest.approx(1.057, abs=0.001)
        assert one["rmse"] == pytest.approx(0.0119, abs=1e-4) and not one["warnings"]
        assert one["ci"]["alpha"] == pytest.approx([0.27, 0.43], abs=0.03)
        assert one["ci"]["L_inf"] == pytest.approx([0.976, 1.107], abs=0.03)

    def test_the_stored_pooled_fit_is_four_cosine_runs(self, tmp_path):
        one = self.power("run_id in ['135M-C1-F', '135M-C2-F', '135M-C3-F', '135M-C4-F']", tmp_path)
        best = one["optimum"]
        assert [best["A"], best["alpha"], best["L_inf"]] == pytest.approx([3321.8, 0.9261, 1.279], rel=1e-4)
        assert one["n"] == 82 and one["rmse"] == pytest.approx(0.0581, abs=1e-4)
        assert any("4 runs are pooled" in text for text in one["warnings"])
        assert any("cosine" in text for text in one["warnings"])

    def test_360m_is_not_identified(self, tmp_path):
        one = self.power("run_id == '360M-scaling'", tmp_path)
        best = one["optimum"]
        assert [best["A"], best["alpha"], best["L_inf"]] == pytest.approx([3.23, 0.1705, 1.0201], rel=2e-3)
        assert one["identified"] is False and one["alpha"] is None and "too wide" in one["reason"]

    def test_the_joint_fit_is_refused(self, tmp_path):
        constant = self.points().query("run_id in ['135M-scaling', '360M-scaling']")
        assert "2 values of N" in refused(run("fit", constant, tmp_path))
        stored = self.points().query("run_id == '360M-scaling' or run_id.str.match('135M-C.-F')")
        assert "schedules are mixed" in refused(run("fit", stored, tmp_path))
        assert "2 values of N" in refused(run("fit", stored.drop(columns="lr_schedule"), tmp_path))
