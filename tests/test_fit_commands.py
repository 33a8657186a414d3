"""fvlm fit and powerlaw find known laws and leave null what the data do not identify. All four fits refuse bad input in
one sentence."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fvlm.__main__ import COMMANDS
from fvlm.analysis.inputs import BLANK, read
from fvlm.errors import UserError
from tests.fit_cases import A_OPT, LAW, correlated, grid, joint_points, law, refuse, run, training_curves

ROOT = Path(__file__).resolve().parents[1]
AS_NAMED = Namespace(columns="", keep=[])
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


def sizes_of(table: pd.DataFrame, first: int, last: int) -> pd.DataFrame:
    return table[table["N"].isin(sorted(table["N"].unique())[first:last])]


def along_one_line(spread: float) -> pd.DataFrame:
    """Samples that grow with parameters; `spread` of log D around the line."""
    n = np.geomspace(1e7, 1e10, 40)
    d = 20 * n * np.exp(spread * np.random.default_rng(0).normal(size=40))
    return pd.DataFrame({"N": n, "D": d, "L": law(n, d)})


def without_n() -> pd.DataFrame:
    table = joint_points()
    noise = np.exp(0.003 * np.random.default_rng(1).normal(size=len(table)))
    return table.assign(L=(1.9 + LAW["B"] * table["D"] ** -LAW["beta"]) * noise)


TABLE, TWO = joint_points(), sizes_of(joint_points(), 2, 4)
STEEP = 2 + 0.5 * (TABLE["N"] / 1e8) ** -5.0 + 0.3 * (TABLE["D"] / 1e10) ** -0.3
MIXED = TABLE.assign(lr_schedule=["constant", "cosine"] * 24)
UNIDENTIFIED = {  # points, and a part of the reason
    "two sizes": (TWO, "^2 values of N; an exponent needs three$"),
    "sizes less than a percent apart": (pd.concat([TWO, TWO.assign(N=TWO["N"] * 1.004, L=TWO["L"] * 1.001)]), "^2 val"),
    "no term of N": (without_n(), "the N term vanishes|ran into its bound"),
    "N and D together": (along_one_line(0.005), "varies only together"),
    "a bound": (TABLE.assign(L=STEEP), "exponent of N ran into its bound 3"),
    "five points": (TABLE.iloc[::9].iloc[:5], "^5 points cannot carry 5 parameters and an error$"),
    "two schedules": (MIXED, "2 learning-rate schedules are mixed .*cosine: 24 points"),
}


@pytest.mark.parametrize("options", [(), ("--bootstrap", "100")])
@pytest.mark.parametrize("name", UNIDENTIFIED)
def test_what_the_points_do_not_identify_is_null_with_a_reason(tmp_path, name, options):
    table, reason = UNIDENTIFIED[name]
    found = run("fit", table, tmp_path, *options)
    assert found["identified"] is False and re.search(reason, found["reason"]) and found["n"] == len(table)
    assert all(found[one] is None for one in REFUSED) and not any((found["ci"] or {}).get(one) for one in REFUSED)
    assert (found["E"] is None and found["A"] is None) and (found["objective"] is None) == (name == "five points")


def test_what_they_identify_is_not_refused(tmp_path):
    assert "varies only together" not in (run("fit", along_one_line(0.1), tmp_path)["reason"] or "")
    assert run("fit", TABLE.assign(lr_schedule="cosine"), tmp_path)["identified"] is True
    rough = joint_points(sizes=4, budgets=3, noise=0.02)  # only the bootstrap shows how wide its interval is
    assert run("fit", rough, tmp_path)["identified"] is True
    assert "too wide" in run("fit", rough, tmp_path, "--bootstrap", "300")["reason"]


def test_a_missing_term_is_seldom_called_identified(tmp_path):
    """The loss does not depend on N, and no intervals show it."""
    table, identified = joint_points(noise=0), []
    for seed in range(40):
        noise = np.exp(0.005 * np.random.default_rng(seed).standard_t(4, size=len(table)))
        fit = run("fit", table.assign(L=(1.69 + 410.7 * table["D"] ** -0.28) * noise), tmp_path)
        identified.append(fit["identified"])
    assert sum(identified) <= 1


def test_intervals_cover_the_law_about_as_often_as_they_say(tmp_path):
    inside = []
    for seed in range(40):
        found = run("fit", joint_points(sizes=5, budgets=4, noise=0.001, seed=seed), tmp_path, "--bootstrap", "200")
        truth = {"alpha": LAW["alpha"], "beta": LAW["beta"], "a": A_OPT}
        inside += [found["ci"][name][0] <= value <= found["ci"][name][1] for name, value in truth.items()]
    assert 0.85 <= np.mean(inside) <= 0.995  # 120 of them, three by three dependent


def test_intervals_depend_on_the_seed_alone(tmp_path):
    one, same, other = (run("fit", TABLE, tmp_path, "--bootstrap", "100", "--seed", seed) for seed in "112")
    assert one == same and other["ci"] != one["ci"] and other["alpha"] == one["alpha"]
    assert one["bootstrap"]["of"] == one["resampled"] == "points" and one["block"] == 1
    assert one["bootstrap"]["draws"] == 100 and one["ci"]["E"][0] < one["E"] < one["ci"]["E"][1]


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


def test_the_output_names_what_the_bootstrap_drew(tmp_path, capsys):
    """Points of independent runs, residuals where there are few, blocks along a curve."""
    curve = power_points(n=80).assign(run="r", architecture="curve")
    curve["L"] *= np.exp(correlated(80, 0.7, 0.001, seed=0))
    apart = [power_points(1e-4, n).assign(run=[f"r{i}" for i in range(n)]) for n in (12, 7)]
    for table, drawn in ((apart[0], "points"), (apart[1], "residuals"), (curve, "residuals in moving blocks")):
        found = run("powerlaw", table, tmp_path, "--bootstrap", "60")
        (one,) = found["fits"].values()
        assert found["bootstrap"]["of"] == one["resampled"] == drawn and (one["block"] > 1) == (table is curve)
        assert f"intervals: 95 %, bootstrap of the {drawn}, 60 resamples" in capsys.readouterr().out
    found = run("powerlaw", apart[0], tmp_path, "--bootstrap", "0")
    assert found["bootstrap"] is None and found["fits"]["all"]["resampled"] is None


def test_block_intervals_cover_the_law_of_a_correlated_curve(tmp_path):
    inside = {"blocks": [], "apart": []}
    for seed in range(40):
        d = np.linspace(1e4, 3e5, 80)
        loss = (1.05 + 13.7 * d**-0.35) * np.exp(correlated(80, 0.7, 0.004, seed))
        table = pd.DataFrame({"D": d, "L": loss})
        for name, own in (("blocks", table.assign(run="r")), ("apart", table)):
            one = run("powerlaw", own, tmp_path, "--x", "D", "--loss", "squares", "--bootstrap", "200")["fits"]["all"]
            inside[name].append(one["ci"]["alpha"] is None or one["ci"]["alpha"][0] <= 0.35 <= one["ci"]["alpha"][1])
    assert np.mean(inside["blocks"]) >= 0.85 and np.mean(inside["blocks"]) > np.mean(inside["apart"]) + 0.1


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
        ("--by", "size", "--columns", "size=shape"): "no column 'shape'",
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
    mixed = power_points().assign(lr_schedule=["constant", "cosine"] * 6)
    one = run("powerlaw", mixed, tmp_path)["fits"]["all"]
    assert one["identified"] is False and one["alpha"] is None and one["L_inf"] is None and "mixed" in one["reason"]
    ends = power_points().assign(run=[f"r{i}" for i in range(12)], lr_schedule="cosine")
    assert run("powerlaw", ends, tmp_path)["fits"]["all"]["identified"]


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
    "ragged": (lambda t: "C,L\n1,2\n1\n", "row 3: 1 cells where the header has 2"),
    "binary": (lambda t: "C,L\n1,1\n2,\x00\n", "it holds null bytes"),
}


@pytest.mark.parametrize(("command", "name"), [*(("powerlaw", name) for name in BAD), *((c, "twice") for c in FITS)])
def test_bad_input_is_one_sentence(tmp_path, capsys, command, name):
    change, words = BAD[name]
    table = {"envelope": training_curves, "isoflop": grid, "powerlaw": power_points}.get(command, joint_points)()
    assert words in refuse(command, change(table), tmp_path, capsys)


@pytest.mark.parametrize("command", FITS)
def test_a_loss_that_rises_is_refused(tmp_path, capsys, command):
    table = {"envelope": training_curves, "isoflop": grid, "powerlaw": power_points}.get(command, joint_points)()
    assert "the loss L rises with" in refuse(command, table.assign(L=1 / table["L"]), tmp_path, capsys)


def test_a_file_as_a_spreadsheet_writes_it_is_read(tmp_path):
    """A byte order mark, Windows line ends, quotes, spaces, blank lines at the end."""
    path = tmp_path / "points.csv"
    path.write_bytes('\ufeffN, D ,"L",note\r\n1e8,"2e9",2.5,"a, b"\r\n2e8, 2e9,2.25,\r\n\r\n,,,\r\n'.encode())
    table = read(path, AS_NAMED, ("N", "D", "L"))
    assert table.to_dict("list") == {"N": [1e8, 2e8], "D": [2e9, 2e9], "L": [2.5, 2.25]}


def test_rows_are_counted_as_in_the_file(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("run,L\nr,1\n\nr,2\nr,1_0\n")
    with pytest.raises(UserError, match="row 5: L is '1_0'"):
        read(path, AS_NAMED, ("L",))
    path.write_text("run,L\nr,1\n,2\n")
    assert list(read(path, AS_NAMED, ("L",), ("run",), {"run": BLANK})["run"]) == ["r", ""]
    with pytest.raises(UserError, match="row 3: run is empty"):
        read(path, AS_NAMED, ("run", "L"))


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
