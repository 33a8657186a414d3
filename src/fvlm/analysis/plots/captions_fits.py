"""Captions of the grid's figures and of the fits: exponents with their intervals, or why there is none."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from fvlm import style
from fvlm.analysis.compare.gap import RISES
from fvlm.analysis.fits.sums import DELTA
from fvlm.analysis.plots.sentences import counted, number, span, spread, within


def _reason(row: pd.Series) -> str:
    return f"not identified ({row['reason']})" if isinstance(row["reason"], str) and row["reason"] else "not identified"


def _by_architecture(table: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    for name, own in table.groupby("architecture", sort=False):
        yield style.NAMES[name], own


def _exponent(row: pd.Series, symbol: str, n: str) -> str:
    """'N* ∝ C^0.52 (0.5 to 0.55), n = 4 minima', or why not."""
    if not np.isfinite(row["value"]):
        return f"exponent of {symbol} {_reason(row)}, {n}"
    return f"{symbol} ∝ C^{within(row, 'value')}, {n}"


def _loss_vs_flops(table: pd.DataFrame) -> list[str]:
    parts = []
    for name, own in _by_architecture(table):
        row, runs = own[own["what"] == "exponent"].iloc[0], own[own["what"] == "run"]
        n = f"n = {int(row['runs'])} lowest of {len(runs)} runs"
        if not np.isfinite(row["value"]):
            parts.append(f"{name}: {row['reason']}, {n}.")
            continue
        form = "no floor" if isinstance(row["reason"], str) and row["reason"] else "and a floor"
        far = own[own["what"] == "extrapolated"].iloc[-1]
        falls = {"value": -row["value"], "low": -row["high"], "high": -row["low"]}
        beyond = f"{within(far, 'loss')} nats, perplexity {number(np.exp(far['loss']))}"
        told = f"loss ∝ C^{within(falls, 'value')}, {form}, {n}"
        parts.append(f"{name}: {told}; prolonged to {number(far['C'])} FLOPs: {beyond}.")
    return [*parts, "95 % intervals and bands: bootstrap of the residuals."]


def _isoflop(table: pd.DataFrame) -> list[str]:
    parts = []
    for name, own in _by_architecture(table):
        inside, runs = own[own["what"] == "minimum"], own[own["what"] == "run"]
        budgets = runs["budget"].nunique()
        told = ", ".join(f"{row['budget']} N* = {number(row['N'])}" for _, row in inside.iterrows())
        parts.append(
            f"{name}: {len(inside)} of {budgets} minima inside ({counted(len(runs), 'run')}){': ' * bool(told)}{told}."
        )
    return parts


def _isoflop_optimum(table: pd.DataFrame) -> list[str]:
    parts = []
    for name, own in _by_architecture(table):
        rows = own[own["what"] == "exponent"]
        left_out = int(((own["what"] == "excluded") & (own["quantity"] == "N*")).sum())
        told = [_exponent(row, row["quantity"], f"n = {int(row['n'])} minima") for _, row in rows.iterrows()]
        parts.append(f"{name}: {'; '.join(told)}; {left_out} left out.")
    return [*parts, "95 % intervals and bands: t of the least-squares line in log-log."]


def _envelope(table: pd.DataFrame) -> list[str]:
    parts = []
    for name, own in _by_architecture(table):
        row, along = own[own["what"] == "exponent"].iloc[0], own[own["what"] == "envelope"]
        inside = (along["used"].astype(str) == "True").mean()
        told = _exponent(row, "N*", counted(int(row["n"]), "change") + " of the best size")
        note = f" {row['note']}." if isinstance(row["note"], str) and row["note"] else ""
        parts.append(
            f"{name}: {told}; the best size is inside those tried at {number(100 * inside)} % of the budgets.{note}"
        )
    return [*parts, "95 % intervals: t of the least-squares line in log-log."]


def _contours(table: pd.DataFrame) -> list[str]:
    parts = []
    for name, own in _by_architecture(table):
        rows = own[own["what"] == "parameter"]
        runs = own[own["what"] == "run"]
        n = counted(len(runs), "run")
        if rows["value"].isna().all():
            parts.append(f"{name}: {_reason(rows.iloc[-1])}, {n}.")
            continue
        refused = rows[rows["value"].isna()]
        told = ", ".join(f"{row['parameter']} {within(row, 'value')}" for _, row in rows.drop(refused.index).iterrows())
        if len(refused):
            told += f"; {', '.join(refused['parameter'])} {_reason(refused.iloc[-1])}"
        per = runs["C"] / (runs["N"] * runs["D"])
        mean = np.exp(np.log(per).mean())
        apart = 100 * max(per.max() / mean - 1, 1 - per.min() / mean)
        parts.append(f"{name}: {told}, {n}; C = {number(mean)} N D, within {number(apart)} %.")
    return [*parts, "95 % intervals: bootstrap of the residuals."]


def _residuals(table: pd.DataFrame) -> list[str]:
    parts = []
    for name, own in _by_architecture(table):
        inside, rmse = (own["residual"].abs() <= DELTA).mean(), np.sqrt((own["residual"] ** 2).mean())
        reason = own.iloc[0]
        known = not (isinstance(reason["reason"], str) and reason["reason"])
        told = f"root mean square {number(rmse)}, {number(100 * inside)} % within ±{DELTA:g}, n = {len(own)} runs"
        parts.append(f"{name}: {told}{'' if known else '; parameters ' + _reason(reason)}.")
    return parts


def _bootstrap_pairs(table: pd.DataFrame) -> list[str]:
    parts = []
    for name, own in _by_architecture(table):
        fit, draws = own[own["what"] == "fit"].iloc[0], own[own["what"] == "draw"]
        n = f"n = {int(fit['n'])} runs, {len(draws)} draws"
        if isinstance(fit["reason"], str) and fit["reason"]:
            parts.append(f"{name}: {_reason(fit)}, {n}.")
            continue
        told = []
        for column in ("E", "alpha", "beta", "a"):
            low, high = draws[column].quantile([0.025, 0.975])
            told.append(f"{column} {within({column: fit[column], 'low': low, 'high': high}, column)}")
        parts.append(f"{name}: {', '.join(told)}; {n}.")
    return [*parts, "95 % intervals: percentiles of the draws, a bootstrap of the residuals."]


def _gap(table: pd.DataFrame) -> list[str]:
    grid = table[table["family"] == "grid"] if (table["family"] == "grid").any() else table
    what = "grid" if (grid["family"] == "grid").any() else "pairs"
    parts = [
        f"{grid['measure'].iloc[0].capitalize()} loss of the {what}, raw gap: {spread(grid['raw_percent'], ' %')}."
    ]
    sides = {"at_foveated": "At the foveated model's N", "at_baseline": "At the baseline's N"}
    for name, word in sides.items():
        known = grid[grid[f"{name}_percent"].notna()]
        if len(known):
            beyond = int((known[f"{name}_extrapolates"].astype(str) == "True").sum())
            told = f"{spread(known[f'{name}_percent'], ' %')} ({beyond} of {len(known)} extrapolate)"
            parts.append(f"{word}: {told}.")
    if grid["directions_differ"].notna().any():
        parts.append(f"The two directions differ by at most {number(grid['directions_differ'].max())} points.")
    rising = int(grid["note"].astype(str).str.contains(RISES).sum())
    if rising:
        parts.append(
            f"In {rising} of {len(grid)} a curve that is read off {RISES}, and does not say what parameters are worth."
        )
    return [f"{counted(len(table), 'pair')} of runs.", *parts]


def _exponents(table: pd.DataFrame) -> list[str]:
    parts = []
    for (exponent, name), own in table.groupby(["exponent", "architecture"], sort=False):
        known = own[own["value"].notna()]
        told = f"{exponent}, {style.NAMES[name]}: identified in {len(known)} of {len(own)} analyses"
        between = f", {span(known['value'])}" if len(known) else ""
        parts.append(f"{told}{between} (n = {int(own['n'].min())} to {int(own['n'].max())} points).")
    return parts


FITS: dict[str, Callable[[pd.DataFrame], list[str]]] = {
    "loss_vs_flops": _loss_vs_flops,
    "isoflop": _isoflop,
    "isoflop_optimum": _isoflop_optimum,
    "envelope": _envelope,
    "contours": _contours,
    "residuals": _residuals,
    "bootstrap_pairs": _bootstrap_pairs,
    "gap": _gap,
    "gap_arrows": _gap,
    "exponents": _exponents,
}
