"""Iso-FLOP curves: at each budget, the model size with the lowest loss."""

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.fits.grid import grid_points

# Points of the local parabola: one over the whole range misplaces the minimum of a skewed curve; three points or an
# interpolant (Akima) do so least without noise, but move up to four times as far with a noise of 0.2 %.
WINDOW = 5


def isoflop(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per architecture and budget of the grid."""
    parts = [minima(own) for _, own in grid_points(runs).groupby("architecture", sort=False)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS["isoflop"])


def minima(points: pd.DataFrame) -> pd.DataFrame:
    """Of one architecture's grid points, the minimum at each budget; `used` is false, with a reason, where
    there is none."""
    return pd.DataFrame(minimum_rows(points), columns=COLUMNS["isoflop"])


def minimum_rows(points: pd.DataFrame) -> list[dict]:
    """The rows of `minima`, and whether a minimum lies at the `edge` of the sizes."""
    by_budget = points.sort_values("C").groupby("budget", sort=False)
    return [{"edge": False} | _minimum(own.sort_values("N")) | {"budget": budget} for budget, own in by_budget]


def _minimum(points: pd.DataFrame) -> dict:
    n, loss = points["N"].to_numpy(float), points["loss"].to_numpy(float)
    row = {
        "architecture": points["architecture"].iloc[0],
        "flops": points["C"].mean(),
        "sizes": len(n),
        "used": False,
    }
    lowest = int(np.argmin(loss))
    if len(n) < 3:
        return row | {"reason": f"{len(n)} size{'s' * (len(n) != 1)}; a minimum needs three"}
    if lowest in (0, len(n) - 1):
        edge = "smallest" if lowest == 0 else "largest"
        return row | {
            "n_opt": n[lowest],
            "loss": loss[lowest],
            "d_opt": points["D"].iloc[lowest],
            "edge": True,
            "reason": f"the {edge} size is best: the minimum lies beyond the sizes tried",
        }
    first = min(max(0, lowest - WINDOW // 2), max(0, len(n) - WINDOW))
    near = slice(first, first + WINDOW)
    centre = np.log(n[lowest])
    curvature, slope, height = np.polyfit(np.log(n[near]) - centre, loss[near], 2)
    shift = -slope / (2 * curvature) if curvature > 0 else np.nan
    if not np.log(n[lowest - 1]) <= centre + shift <= np.log(n[lowest + 1]):
        return row | {"reason": "the local parabola has no minimum next to the lowest point"}
    d_opt = np.exp(np.interp(centre + shift, np.log(n), np.log(points["D"].to_numpy(float))))
    return row | {
        "n_opt": np.exp(centre + shift),
        "d_opt": d_opt,
        "loss": height + slope * shift / 2,
        "used": True,
        "reason": "",
        "curvature": curvature,
        "log_n_centre": centre + shift,
    }
