"""Every fit made of the scaling grid: L(C), L(D) by size, L(N, D), and the iso-FLOP exponents."""

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.fits.grid import grid_points, lowest_by_budget
from fvlm.analysis.fits.isoflop import minima
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
    """One row per fit and parameter. A parameter that the data cannot support has no numbers but a reason.

    L(C) uses the lowest final loss at each budget; L(N, D) all of an architecture's grid runs. Runs
    trained at a constant rate would also allow fits along a curve; runs with a decaying rate do not, so
    only final losses are used.
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
    return rows + _isoflop_rows(architecture, points)


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


def _isoflop_rows(architecture: str, points: pd.DataFrame) -> list[dict]:
    """Exponents of N_opt and D_opt in C from the iso-FLOP minima, by least squares in log-log."""
    found = minima(points)
    used = found[found["used"]]
    rows = []
    for name, column in (("N_opt_exponent", "n_opt"), ("D_opt_exponent", "d_opt")):
        if len(used) < 3:
            reason = f"{len(used)} of {len(found)} minima lie inside the sizes tried; an exponent needs three"
            estimate, rmse = Estimate(name, np.nan, np.nan, np.nan, reason), np.nan
        else:
            x, y = np.log(used["flops"].to_numpy(float)), np.log(used[column].to_numpy(float))
            estimate, rmse = log_slope(name, x, y)
        rows.append(_row("iso-FLOP minima", FORMS["iso"], architecture, points, estimate, rmse))
    return rows


def log_slope(name: str, x: np.ndarray, y: np.ndarray) -> tuple[Estimate, float]:
    """Slope of log y on log x by least squares with its t interval, and the root mean square residual; three
    points or more, and not identified where the interval is wider than 1."""
    slope, intercept = np.polyfit(x, y, 1)
    residuals = y - intercept - slope * x
    error = np.sqrt((residuals**2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum())
    low, high = slope + np.array([-1, 1]) * stdtrit(len(x) - 2, 0.975) * error
    if high - low > 1:
        values, reason = (np.nan,) * 3, f"the interval, {low:.2g} to {high:.2g}, is too wide"
    else:
        values, reason = (float(slope), float(low), float(high)), ""
    return Estimate(name, *values, reason), float(np.sqrt(np.mean(residuals**2)))


def log_band(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least-squares line of y on x (three points or more) at `at`, and the half width of its 95 % t band: where
    the line lies, not where a further point would."""
    slope, intercept = np.polyfit(x, y, 1)
    spread = np.sqrt(((y - intercept - slope * x) ** 2).sum() / (len(x) - 2))
    away = np.sqrt(1 / len(x) + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    return intercept + slope * at, stdtrit(len(x) - 2, 0.975) * spread * away
