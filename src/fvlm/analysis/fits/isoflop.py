"""Iso-FLOP curves: at each budget, the model size with the lowest loss (Hoffmann et al. 2022, approach 2). The table
`isoflop` of a study, and `fvlm isoflop POINTS.csv`."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.fits.grid import grid_points, separate_budgets
from fvlm.analysis.fits.points import check_falls, one_schedule
from fvlm.analysis.fits.slopes import log_slope, size_exponents
from fvlm.analysis.fits.sums import Estimate
from fvlm.analysis.inputs import add_files, finish, read, shown

# Points of the local parabola: one over the whole range misplaces the minimum of a skewed curve; three points or an
# interpolant (Akima) do so least without noise, but move up to four times as far with a noise of 0.2 %.
WINDOW = 5
METHOD = (
    f"per budget the minimum of a parabola in log N through at most {WINDOW} points around the lowest; minima at the "
    "edge of the sizes are left out; a: slope of log N_opt on log C by least squares, 95 % t interval"
)


def isoflop(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per architecture and budget of the grid."""
    parts = [minima(own) for _, own in grid_points(runs).groupby("architecture", sort=False)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS["isoflop"])


def minima(points: pd.DataFrame) -> pd.DataFrame:
    """Of one architecture's points (budget, N, D, C, loss), the minimum at each budget, in the order of C; `used` is
    false, with a reason, where there is none."""
    by_budget = points.sort_values("C").groupby("budget", sort=False)
    rows = [_minimum(own.sort_values("N")) | {"budget": budget} for budget, own in by_budget]
    return pd.DataFrame(rows, columns=COLUMNS["isoflop"])


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


def exponents(found: pd.DataFrame) -> list[tuple[Estimate, float]]:
    """Of the minima that are used: the exponents of N_opt and D_opt in C, and the root mean square residual of each."""
    used = found[found["used"]]
    few = f"{len(used)} of {len(found)} minima lie inside the sizes tried; an exponent needs three"
    return [log_slope(f"{one.upper()}_opt_exponent", used["flops"], used[f"{one}_opt"], few) for one in "nd"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_files(parser, "points", "C, N, L; optional D, lr_schedule", "N=params,L=loss", needed=True)


def main(args: argparse.Namespace) -> None:
    points = read(args.points, args, ("C", "N", "L"), ("D", "lr_schedule"))
    mixed, count = one_schedule(points), len(points)
    points = by_budget(args.points, points)
    lowest = points.loc[points.groupby("budget")["loss"].idxmin(), ["C", "loss"]].rename(columns={"loss": "L"})
    check_falls(args.points, lowest, "C", what=" from budget to budget")
    found = minima(points)
    (n_opt, _), (d_opt, _) = exponents(found)
    result = {
        "method": METHOD,
        "form": "N_opt ~ C^a, D_opt ~ C^b",
        "n": count,
        **size_exponents(n_opt, d_opt, mixed),
        "budgets": [_budget(row) for row in found.to_dict("records")],
    }
    finish(args.points, args.out, result, summary)


def by_budget(path: Path | str, points: pd.DataFrame) -> pd.DataFrame:
    """Points as `minima` takes them; D is NaN where there is none; equal N of a budget (seeds) averaged."""
    budgets = separate_budgets(path, points["C"].to_numpy())
    points = points.assign(budget=budgets, loss=points["L"], architecture="")
    points = points if "D" in points else points.assign(D=np.nan)
    how = dict.fromkeys(("C", "D", "loss"), "mean") | {"architecture": "first"}
    return points.groupby(["budget", "N"], as_index=False).agg(how)


def _budget(row: dict) -> dict:
    names = {"C": "flops", "sizes": "sizes", "N_opt": "n_opt", "D_opt": "d_opt", "L_opt": "loss", "used": "used"}
    edge = not row["used"] and np.isfinite(row["n_opt"])  # N_opt is then the smallest or largest size
    return {name: row[column] for name, column in names.items()} | {"edge": edge, "reason": row["reason"] or None}


def summary(result: dict) -> list[str]:
    count = len(result["budgets"])
    lines = [f"{result['n']} points at {count} budget{'s' * (count != 1)}"]
    for row in result["budgets"]:
        mark = "" if row["used"] else f" (left out: {row['reason']})"
        lines.append(f"  C = {row['C']:.3g}: N_opt {shown(row['N_opt'])}, L_opt {shown(row['L_opt'])}{mark}")
    lines.append(f"  a  {shown(result['a'], result['ci']['a'])}")
    return lines + ([f"not identified: {result['reason']}"] if result["reason"] else [])
