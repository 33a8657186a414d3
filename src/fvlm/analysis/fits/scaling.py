"""Every fit made of the scaling grid: L(C), L(D) by size, L(N, D), and the iso-FLOP exponents."""

from dataclasses import asdict

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.fits.grid import about_adopted, grid_points, lowest_by_budget
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
    """Return one row per fit and parameter. A parameter that the data do not identify has a reason instead of numbers.

    L(C) uses the lowest final loss at each budget; L(N, D) all of an architecture's grid runs. Only final losses are
    used, since along a run with a decaying learning rate the loss follows no power law.
    """
    points = grid_points(runs)
    rows = [row for name, own in points.groupby("architecture", sort=False) for row in _fits_of(name, own)]
    return pd.DataFrame(rows, columns=COLUMNS["scaling_fits"])


def _fits_of(architecture: str, points: pd.DataFrame) -> list[dict]:
    best = lowest_by_budget(points)
    fits = [
        ("compute", "C", best, ("C",), True),
        ("compute, no floor", "C0", best, ("C",), False),
        *((f"samples at {size}", "D", own, ("D",), True) for size, own in points.groupby("size", sort=False)),
        ("parameters and samples", "ND", points, ("N", "D"), True),
    ]
    rows = []
    for fit, form, own, names, floor in fits:
        result, judged = estimates(own[list(names)].to_numpy(), own["loss"].to_numpy(), names, floor)
        rmse = np.nan if result is None else result.rmse
        rows += [_row(fit, form, architecture, own, one, rmse) for one in judged]
    optima = exponents(minima(points))
    return rows + [_row("iso-FLOP minima", "iso", architecture, points, one, rmse) for one, rmse in optima]


def _row(fit: str, form: str, architecture: str, points: pd.DataFrame, estimate: Estimate, rmse: float) -> dict:
    tokens_per_parameter = (points["tokens"] / points["N"]).max()
    return asdict(estimate) | {
        "fit": fit,
        "architecture": architecture,
        "form": FORMS[form],
        "parameter": estimate.name,
        "identified": not estimate.reason,
        "n_points": len(points),
        "rmse": rmse,
        "samples_per_parameter": (points["D"] / points["N"]).max(),
        "tokens_per_parameter": tokens_per_parameter,
        "data_starved": bool(tokens_per_parameter < STARVED),
        "note": about_adopted(points),
    }
