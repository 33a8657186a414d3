"""The scaling exponents under every choice of an analysis: method, budgets and loss."""

from collections.abc import Iterator
from dataclasses import asdict

import pandas as pd

from fvlm.analysis.fits.envelope import crossings, frontier
from fvlm.analysis.fits.grid import curves, grid_points, lowest_by_budget
from fvlm.analysis.fits.isoflop import exponents as of_minima
from fvlm.analysis.fits.isoflop import minima
from fvlm.analysis.fits.sums import Estimate, estimates, resampling

PLACE = ["architecture", "exponent", "method", "budgets", "loss"]
COLUMNS = [*PLACE, "value", "low", "high", "identified", "reason", "n", "interval"]
LOSSES = {"final": "final.val_loss", "best": "best.val_loss"}
N_OPT, OF_LOSS = "N_opt", "L(C)"
ALL, WITHOUT_SMALLEST = "all budgets", "without the smallest"
T_INTERVAL = "t of the slope"


def exponents(runs: pd.DataFrame, validation_curves: pd.DataFrame) -> pd.DataFrame:
    """Return one row per architecture, exponent (a of N_opt ~ C^a, or that of L(C)) and choice: the method, with or
    without the smallest budget, the final or the best validation loss. Along training curves there is no final loss."""
    along = grid_curves(runs, validation_curves)
    rows = []
    for budgets in (ALL, WITHOUT_SMALLEST):
        for loss, column in LOSSES.items():
            points = grid_points(runs.assign(**{"final.val_loss": runs[column]}))
            for name, own in points.groupby("architecture", sort=False):
                own = own if budgets == ALL else own[own["nominal"] > own["nominal"].min()]
                if own.empty:
                    continue  # one budget
                curve = along[(along["architecture"] == name) & along["budget"].isin(own["budget"])]
                for row in _rows(own, curve if loss == "final" else None):
                    rows.append({"architecture": name, "budgets": budgets, "loss": loss} | row)
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.loc[table["method"].eq(METHODS[0]), "loss"] = "every"
    return table


METHODS = ("training curves", "iso-FLOP minima", "L(N, D)")  # approaches 1, 2 and 3 of Hoffmann et al. (2022)
FORMS = {"power law": False, "power law + floor": True}


def _rows(points: pd.DataFrame, curves: pd.DataFrame | None) -> Iterator[dict]:
    """Of one architecture: each exponent by each method, with the number of points that it is fitted to."""
    if curves is not None:
        found, estimate = crossings(frontier(curves))
        yield _row(N_OPT, METHODS[0], estimate, len(found), T_INTERVAL)
    found = minima(points)
    yield _row(N_OPT, METHODS[1], of_minima(found)[0][0], int(found["used"].sum()), T_INTERVAL)
    _, judged = estimates(points[["N", "D"]].to_numpy(), points["loss"].to_numpy(), ("N", "D"))
    joint = next(one for one in judged if one.name == "N_opt_exponent")
    yield _row(N_OPT, METHODS[2], joint, len(points), f"bootstrap of the {resampling(len(points), 5)}")
    best = lowest_by_budget(points)
    for form, floor in FORMS.items():
        _, judged = estimates(best[["C"]].to_numpy(), best["loss"].to_numpy(), ("C",), floor)
        of_loss = next(one for one in judged if one.name == "exponent_C")
        yield _row(OF_LOSS, form, of_loss, len(best), f"bootstrap of the {resampling(len(best), 2 + floor)}")


def _row(exponent: str, method: str, estimate: Estimate, n: int, interval: str) -> dict:
    place = {"exponent": exponent, "method": method, "n": n, "interval": interval}
    return place | asdict(estimate) | {"identified": not estimate.reason}


def grid_curves(runs: pd.DataFrame, validation_curves: pd.DataFrame) -> pd.DataFrame:
    """Return the validation curves of the grid's runs after their first step, each run in the order of C: the columns
    of the table `curves`, and budget."""
    table = curves(runs[runs["family"] == "grid"], validation_curves).dropna(subset=["N", "D", "C", "L"])
    table = table.join(runs.set_index("run")["budget"], on="run")
    return table[(table[["D", "C", "L"]] > 0).all(axis=1)].sort_values(["run", "C"], ignore_index=True)
