"""The figures of fits: drawn from rich, sparse and empty studies; their numbers, and what the captions say of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fvlm import style
from fvlm.__main__ import main
from fvlm.analysis.catalog import FIGURES
from fvlm.analysis.files import read_tables
from fvlm.analysis.fits.exponents import METHODS, exponents
from fvlm.analysis.fits.slopes import log_band
from fvlm.analysis.plots.captions import SENTENCES, as_rst, caption, number, spread
from fvlm.analysis.tables import load
from tests.analysis_cases import LAW
from tests.figure_cases import BUDGETS, SIZES, grid_tables, write_tables

NEW = ("isoflop_optimum", "envelope", "contours", "residuals", "bootstrap_pairs", "gap_arrows", "exponents")
DRAWN = (*NEW, "loss_vs_flops", "isoflop", "gap")
FORMS = {
    "rich": {},
    "sparse": {"sizes": {"135M": 1.4e8, "360M": 3.8e8}, "budgets": {"C1": 1e17, "C2": 3e17}},
    "one": {"sizes": {"135M": 1.4e8}, "budgets": {"C1": 1e17}, "letters": "F"},
}
A = LAW["b"] / (LAW["a"] + LAW["b"])  # of N_opt ~ C^a


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict[str, tuple[Path, dict[str, pd.DataFrame]]]:
    """Name -> the folder, and its tables."""
    found = {}
    for name, options in FORMS.items():
        tables = grid_tables(**options)
        folder = tmp_path_factory.mktemp(name)
        write_tables(folder / "tables", tables)
        found[name] = (folder, tables)
    return found


def drawn(forms, form: str, name: str) -> pd.DataFrame:
    folder, _ = forms[form]
    assert main(["figure", name, "--tables", f"{folder}/tables", "--out-dir", f"{folder}/figures"]) == 0
    return pd.read_csv(folder / "figures" / f"{name}.csv", keep_default_na=False, na_values=[""])


def sentences(forms, form: str, name: str) -> str:
    return (forms[form][0] / "figures" / f"{name}.rst").read_text().replace("\\", "")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_drawn_from_any_study(forms, name, form):
    table = drawn(forms, form, name)
    for suffix in (".png", ".pdf", ".csv", ".rst"):
        assert (forms[form][0] / "figures" / f"{name}{suffix}").stat().st_size > 10
    text = sentences(forms, form, name)
    nothing = list(table.columns) == ["reason"]
    assert text.startswith("Nothing to draw: ") == nothing
    assert form != "rich" or not nothing
    assert nothing or ("n = " in text and "nan" not in text)


@pytest.mark.parametrize("name", sorted({*DRAWN} & {*SENTENCES}))
def test_a_caption_has_the_numbers_of_the_csv(forms, name):
    table = drawn(forms, "rich", name)
    assert as_rst(caption(name, table)).replace("\\", "") == sentences(forms, "rich", name)
    changed = table.copy()
    for column in table.select_dtypes("number").columns.difference(["n", "runs", "n_seeds"]):
        changed[column] = table[column] * 1.5
    assert caption(name, changed) != caption(name, table)


def test_the_exponents_are_those_of_the_table_of_fits(forms):
    fits = forms["rich"][1]["scaling_fits"].set_index(["fit", "architecture", "parameter"])
    table = drawn(forms, "rich", "isoflop_optimum")
    text = sentences(forms, "rich", "isoflop_optimum")
    for architecture in ("foveated", "multi_token"):
        for symbol, parameter in (("N*", "N_opt_exponent"), ("D*", "D_opt_exponent")):
            row = fits.loc[("iso-FLOP minima", architecture, parameter)]
            own = table[(table["architecture"] == architecture) & (table["quantity"] == symbol)]
            shown = own[own["what"] == "exponent"].iloc[0]
            assert shown[["value", "low", "high"]].tolist() == pytest.approx(
                row[["value", "low", "high"]].tolist(), rel=1e-5
            )
            values = [number(shown[column]) for column in ("value", "low", "high")]
            assert "{} ∝ C^{} ({} to {}), n = 4 minima".format(symbol, *values) in text
            line = own[own["what"] == "fitted"]
            slope = np.polyfit(np.log(line["C"]), np.log(line["value"]), 1)[0]
            assert slope == pytest.approx(row["value"], rel=1e-4)
            ends = own[own["what"] == "extrapolated"]["C"]
            assert ends.max() / ends.min() == pytest.approx(10, rel=1e-4)
    assert (table["what"] == "excluded").sum() == 4  # the last budget: N* and D* of both
    assert text.count("1 left out") == 2


def test_the_band_of_a_line_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 3, 12)
    draws = []
    for _ in range(4000):
        y = 1 + 2 * x + 0.3 * rng.normal(size=12)
        value, half = log_band(x, y, np.array([-1.0, 1.5, 5.0]))
        draws.append(np.abs(value - (1 + 2 * np.array([-1.0, 1.5, 5.0]))) <= half)
    assert np.mean(draws, axis=0) == pytest.approx([0.95] * 3, abs=0.012)


def test_contours_have_the_parameters_of_the_table_of_fits(forms):
    table = drawn(forms, "rich", "contours")
    line, runs = table[table["what"].isin(["frontier", "extrapolated"])], table[table["what"] == "run"]
    assert line["C"].max() == pytest.approx(10 * runs["C"].max(), rel=1e-4)
    parameters = table[table["what"] == "parameter"].set_index(["architecture", "parameter"])
    fits = forms["rich"][1]["scaling_fits"].set_index(["fit", "architecture", "parameter"])
    for name, known in (("alpha", "exponent_N"), ("beta", "exponent_D"), ("a", "N_opt_exponent"), ("E", "E")):
        expected = fits.loc[("parameters and samples", "multi_token", known), ["value", "low", "high"]]
        found = parameters.loc[("multi_token", name), ["value", "low", "high"]]
        assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_contours_of_an_unidentified_fit_are_not_drawn(forms):
    table = drawn(forms, "sparse", "contours")
    assert set(table["what"]) == {"run", "parameter"}
    assert table.loc[table["what"] == "parameter", "value"].isna().all()


def test_residuals_are_of_the_log_loss(forms):
    table = drawn(forms, "rich", "residuals")
    assert len(table) == 2 * len(SIZES) * len(BUDGETS)
    assert table["residual"].to_numpy() == pytest.approx(np.log(table["predicted"] / table["loss"]), abs=1e-5)


def test_the_draws_give_the_intervals_of_the_table_of_fits(forms):
    table = drawn(forms, "rich", "bootstrap_pairs")
    fits = forms["rich"][1]["scaling_fits"].set_index(["fit", "architecture", "parameter"])
    for name, known in (("alpha", "exponent_N"), ("a", "N_opt_exponent"), ("E", "E")):
        draws = table[(table["what"] == "draw") & (table["architecture"] == "foveated")][name]
        row = fits.loc[("parameters and samples", "foveated", known)]
        assert draws.quantile([0.025, 0.975]).tolist() == pytest.approx([row["low"], row["high"]], rel=1e-4)


def test_arrows_end_where_the_gaps_say(forms):
    table = drawn(forms, "rich", "gap_arrows")
    assert len(table) == len(SIZES) * len(BUDGETS)
    own = table[(table["budget"] == "C3")].sort_values("n_foveated")
    inside = own[~own["at_foveated_extrapolates"]]
    read = np.interp(np.log(inside["n_foveated"]), np.log(own["n_baseline"]), own["loss_baseline"])
    assert inside["baseline_at_n_foveated"].to_numpy() == pytest.approx(read, rel=1e-4)
    drawn(forms, "rich", "gap")
    text = sentences(forms, "rich", "gap")
    assert f"raw gap: {spread(table['raw_percent'], ' %')}." in text
    assert f"({table['at_baseline_extrapolates'].sum()} of {len(table)} extrapolate)" in text


def test_the_loss_is_prolonged_by_a_decade_and_no_farther(forms):
    table = drawn(forms, "rich", "loss_vs_flops")
    fits = forms["rich"][1]["scaling_fits"].set_index(["fit", "architecture", "parameter"]).sort_index()
    runs = table[table["what"] == "run"]
    assert runs[runs["frontier"].astype(str) == "True"].groupby("architecture")["budget"].nunique().tolist() == [5, 5]
    for name, own in table[table["what"] == "extrapolated"].groupby("architecture"):
        assert own["C"].max() == pytest.approx(10 * runs["C"].max(), rel=1e-4)
        fit = fits.loc[("compute, no floor", name)]["value"]
        assert own["loss"].to_numpy() == pytest.approx(fit["A_C"] * own["C"] ** -fit["exponent_C"], rel=1e-4)
        assert ((own["low"] < own["loss"]) & (own["loss"] < own["high"])).all()
        assert f"perplexity {number(np.exp(own['loss'].iloc[-1]))}." in sentences(forms, "rich", "loss_vs_flops")


def test_every_choice_finds_the_exponent_of_the_law(forms):
    table = exponents(**read_tables(forms["rich"][0] / "tables", ("runs", "validation_curves")))
    own = table[table["exponent"] == "N_opt"]
    assert set(own["method"]) == set(METHODS) and len(own) == 2 * 2 * (1 + 2 + 2)
    assert own["identified"].all() and own["value"].to_numpy() == pytest.approx(A, abs=0.03)
    joint = own[own["method"] == "L(N, D)"]
    assert ((joint["low"] < A) & (joint["high"] > A)).mean() > 0.7
    assert (own["low"] < own["value"]).all() and (own["value"] < own["high"]).all()
    shown = drawn(forms, "rich", "exponents")
    assert shown["value"].to_numpy() == pytest.approx(table["value"].to_numpy(), rel=1e-5, nan_ok=True)


def test_a_long_reason_stays_within_the_figure(forms):
    """The reason why a fit is refused may take two lines."""
    tables = forms["rich"][1]
    refused = tables["scaling_fits"]["fit"].str.startswith("compute")
    fits = tables["scaling_fits"].assign(identified=~refused & tables["scaling_fits"]["identified"].astype(bool))
    fits.loc[refused, "reason"] = "it fits as well with others " * 8
    figure, _ = load(FIGURES["loss_vs_flops"].function)(tables["runs"], tables["validation_curves"], fits)
    figure.draw_without_rendering()
    label = figure.axes[0].xaxis.label
    extent = label.get_window_extent()
    assert "others" in label.get_text() and extent.x0 >= 0 and extent.x1 <= figure.bbox.width
    style.plt.close(figure)


def test_groups_stand_side_by_side_in_their_rows():
    table = pd.DataFrame({"group": ["one", "two", "one"], "value": [1.0, 2.0, 3.0], "low": np.nan, "high": np.nan})
    figure, (ax,) = style.panels(1)
    looks = {"one": ("first", "red", "o"), "none": ("", "red", "o"), "two": ("second", "blue", "s")}
    style.forest([ax], table, "group", looks, [("value", "low", "high")], pd.Series([0, 0, 1]), apart=0.2)
    drawn = {bars.get_label(): bars[0].get_xydata().tolist() for bars in ax.containers}
    assert drawn == {"first": [[1.0, -0.1], [3.0, 0.9]], "second": [[2.0, 0.1]]}
    style.plt.close(figure)


@pytest.mark.parametrize(
    ("value", "text"), [(-0.02814, "−0.0281"), (6971230, "6.97e6"), (1523, "1520"), (1.5e-7, "1.5e−7")]
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text and number(0.5, sign=True) == "+0.5"


def test_special_characters_are_escaped():
    assert as_rst("N* of |x_1|") == "N\\* of \\|x\\_1\\|\n"


def test_a_figure_with_nothing_to_draw_is_a_picture_an_error_or_no_file(forms, tmp_path, capsys):
    folder, _ = forms["one"]
    words = ["--tables", f"{folder}/tables", "--out-dir", str(tmp_path), "--not-drawn", str(tmp_path / "missing.csv")]
    assert main(["figure", "gap", *words]) == 0
    assert "Nothing to draw: no foveated run" in (tmp_path / "gap.rst").read_text()
    assert main(["figure", "gap", *words, "--empty", "refuse"]) == 2
    assert capsys.readouterr().err.startswith("fvlm figure: gap: nothing to draw: no foveated run has a partner")
    assert main(["figure", "gap", "loss_vs_flops", *words, "--empty", "skip", "--processes", "2"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [  # the earlier picture is gone
        *(f"loss_vs_flops.{form}" for form in ("csv", "pdf", "png", "rst")), "missing.csv"
    ]  # fmt: skip
    missing = pd.read_csv(tmp_path / "missing.csv")
    assert missing["figure"].tolist() == ["gap"] and missing["reason"].str.startswith("no foveated run").all()


def test_figures_drawn_at_once_have_the_same_bytes(forms, tmp_path):
    folder, names = forms["sparse"][0], ("gap", "model_size_scaling")
    for processes in ("1", "2"):
        where = ["--tables", f"{folder}/tables", "--out-dir", str(tmp_path / processes)]
        assert main(["figure", *names, *where, "--processes", processes]) == 0
    for path in sorted((tmp_path / "1").iterdir()):
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes(), path.name
