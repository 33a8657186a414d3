"""The scaling exponents under every choice that an analysis has to make: how far does the answer depend on it?"""

from collections.abc import Iterator

import pandas as pd

from fvlm.analysis.fits.envelope import crossings, frontier
from fvlm.analysis.fits.grid import grid_points, lowest_by_budget
from fvlm.analysis.fits.isoflop import exponents as of_minima
from fvlm.analysis.fits.isoflop import minima
from fvlm.analysis.fits.sums import Estimate, estimates

COLUMNS = (
    "architecture",
    "exponent",
    "method",
    "budgets",
    "loss",
    "value",
    "low",
    "high",
    "identified",
    "reason",
    "n",
    "interval",
)
LOSSES = {"final": "final.val_loss", "best": "best.val_loss"}
N_OPT, OF_LOSS = "N_opt", "L(C)"
ALL, WITHOUT_SMALLEST = "all budgets", "without the smallest"
T_INTERVAL, OVER_RESIDUALS = "t of the slope", "bootstrap of the residuals"


def exponents(runs: pd.DataFrame, validation_curves: pd.DataFrame) -> pd.DataFrame:
    """One row per architecture, exponent (a of N_opt ~ C^a; that of L(C)) and choice: the method, with or without
    the smallest budget, the final or the best validation loss. Along training curves there is no final loss."""
    curves = grid_curves(runs, validation_curves)
    rows = []
    for budgets in (ALL, WITHOUT_SMALLEST):
        for loss, column in LOSSES.items():
            points = grid_points(runs.assign(**{"final.val_loss": runs[column]}))
            for name, own in points.groupby("architecture", sort=False):
                own = own if budgets == ALL else own[own["nominal"] > own["nominal"].min()]
                if own.empty:
                    continue  # one budget
                curve = curves[(curves["architecture"] == name) & curves["budget"].isin(own["budget"])]
                for exponent, method, estimate, n, how in _of(own, curve if loss == "final" else None):
                    rows.append(_row(name, exponent, method, budgets, loss, estimate, n, how))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table.loc[table["method"].eq(METHODS[0]), "loss"] = "every"
    return table


METHODS = ("training curves", "iso-FLOP minima", "L(N, D)")  # approaches 1, 2 and 3 of Hoffmann et al. (2022)
FORMS = {"power law": False, "power law + floor": True}


def _of(points: pd.DataFrame, curves: pd.DataFrame | None) -> Iterator[tuple[str, str, Estimate, int, str]]:
    """Of one architecture: exponent, method, estimate, points that it is fitted to, kind of its interval."""
    if curves is not None:
        found, estimate = crossings(frontier(curves))
        yield N_OPT, METHODS[0], estimate, len(found), T_INTERVAL
    found = minima(points)
    yield N_OPT, METHODS[1], of_minima(found)[0][0], int(found["used"].sum()), T_INTERVAL
    _, judged = estimates(points[["N", "D"]].to_numpy(), points["loss"].to_numpy(), ("N", "D"))
    joint = next(one for one in judged if one.name == "N_opt_exponent")
    yield N_OPT, METHODS[2], joint, len(points), OVER_RESIDUALS
    best = lowest_by_budget(points)
    for form, floor in FORMS.items():
        _, judged = estimates(best[["C"]].to_numpy(), best["loss"].to_numpy(), ("C",), floor)
        one = next(one for one in judged if one.name == "exponent_C")
        yield OF_LOSS, form, one, len(best), OVER_RESIDUALS


def _row(architecture, exponent, method, budgets, loss, estimate: Estimate, n: int, how: str) -> dict:
    return {
        "architecture": architecture,
        "exponent": exponent,
        "method": method,
        "budgets": budgets,
        "loss": loss,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "identified": not estimate.reason,
        "reason": estimate.reason,
        "n": n,
        "interval": how,
    }


def grid_curves(runs: pd.DataFrame, validation_curves: pd.DataFrame) -> pd.DataFrame:
    """The validation curves of the grid's runs after their first step: run, architecture, size, budget, N, D, C, L
    (nats per token), each run in the order of C."""
    grid = runs.loc[runs["family"] == "grid", ["run", "architecture", "size", "budget", "params_total"]]
    curves = validation_curves.loc[validation_curves["step"] > 0, ["run", "samples", "flops", "val_loss"]]
    names = {"params_total": "N", "samples": "D", "flops": "C", "val_loss": "L"}
    joined = curves.merge(grid, on="run").rename(columns=names).dropna(subset=list(names.values()))
    return joined[(joined[["D", "C", "L"]] > 0).all(axis=1)].sort_values(["run", "C"], ignore_index=True)
