"""Every fit made of the scaling grid: L(C), L(D) by size, L(N, D), and the iso-FLOP exponents."""

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.fits.grid import grid_points, lowest_by_budget
from fvlm.analysis.fits.isoflop import exponents, minima
from fvlm.analysis.fits.sums import Estimate, estimates

STARVED = 20.0  # training tokens per parameter that Hoffmann et al. (2022) find optimal for text
FORMS = {
    "C": "L(C) = A C^-a + E",
    "C0": "L(C) = A C^-a",
    "D": "L(D) = B D^-b + E",
    "ND": "L(N, D) = E + A N^-a + B D^-b",
    "iso": "N_opt = k C^a",
}


def scaling_fits(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per fit and parameter. A parameter that the data do not identify has a reason instead of numbers.

    L(C) uses the lowest final loss at each budget; L(N, D) all of an architecture's grid runs. Only final losses are
    used, since along a run with a decaying learning rate the loss follows no power law.
    """
    points = grid_points(runs)
    rows = [row for name, own in points.groupby("architecture", sort=False) for row in _fits_of(name, own)]
    return pd.DataFrame(rows, columns=COLUMNS["scaling_fits"])


def _fits_of(architecture: str, points: pd.DataFrame) -> list[dict]:
    best = lowest_by_budget(points)
    rows = _rows("compute", "C", architecture, best, ("C",), True)
    rows += _rows("compute, no floor", "C0", architecture, best, ("C",), False)
    for size, own in points.groupby("size", sort=False):
        rows += _rows(f"samples at {size}", "D", architecture, own, ("D",), True)
    rows += _rows("parameters and samples", "ND", architecture, points, ("N", "D"), True)
    optima = exponents(minima(points))
    return rows + [_row("iso-FLOP minima", FORMS["iso"], architecture, points, one, rmse) for one, rmse in optima]


def _rows(
    fit: str, form: str, architecture: str, points: pd.DataFrame, names: tuple[str, ...], floor: bool
) -> list[dict]:
    result, judged = estimates(points[list(names)].to_numpy(), points["loss"].to_numpy(), names, floor)
    rmse = np.nan if result is None else result.rmse
    return [_row(fit, FORMS[form], architecture, points, estimate, rmse) for estimate in judged]


def _row(fit: str, form: str, architecture: str, points: pd.DataFrame, estimate: Estimate, rmse: float) -> dict:
    tokens_per_parameter = (points["tokens"] / points["N"]).max()
    return {
        "fit": fit,
        "architecture": architecture,
        "form": form,
        "parameter": estimate.name,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "identified": not estimate.reason,
        "reason": estimate.reason,
        "n_points": len(points),
        "rmse": rmse,
        "samples_per_parameter": (points["D"] / points["N"]).max(),
        "tokens_per_parameter": tokens_per_parameter,
        "data_starved": bool(tokens_per_parameter < STARVED),
    }
