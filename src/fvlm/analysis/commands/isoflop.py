"""The best model size at each budget, by a parabola through the points next to the lowest (Hoffmann et al. 2022,
approach 2)."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from fvlm.analysis.commands import exponent, number, separate_budgets, shown, write_result
from fvlm.analysis.commands.inputs import add_keep, read_kept
from fvlm.analysis.fits.isoflop import WINDOW, minimum_rows
from fvlm.analysis.fits.points import check_falls, one_schedule

METHOD = (
    f"per budget the minimum of a parabola in log N through at most {WINDOW} points around the lowest; minima at the "
    "edge of the sizes are left out; a: slope of log N_opt on log C by least squares, 95 % t interval"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("points", help="CSV with columns C, N, L (and D, lr_schedule where there are)")
    parser.add_argument("--out", required=True, help="the JSON file to write")
    add_keep(parser)


def main(args: argparse.Namespace) -> None:
    positive = ("C", "N", "L", "D")
    points = read_kept(args.points, args.keep, positive[:3], positive, ("lr_schedule",))
    mixed = one_schedule(points)
    points = by_budget(args.points, points)
    lowest = points.loc[points.groupby("budget")["loss"].idxmin(), ["C", "loss"]].rename(columns={"loss": "L"})
    check_falls(args.points, lowest, "C", what=" from budget to budget")
    result = exponents(points, mixed)
    write_result(args.points, args.out, result)
    print(summary(result))


def by_budget(path: Path | str, points: pd.DataFrame) -> pd.DataFrame:
    """Points as `minimum_rows` takes them: budget, N, D (NaN where there is none), C, loss; equal N of a budget (seeds)
    averaged."""
    budgets = separate_budgets(path, points["C"].to_numpy())
    points = points.assign(budget=budgets, loss=points["L"], architecture="", runs=1)
    points = points if "D" in points else points.assign(D=np.nan)
    how = dict.fromkeys(("C", "D", "loss"), "mean") | {"runs": "sum", "architecture": "first"}
    return points.groupby(["budget", "N"], as_index=False).agg(how)


def exponents(points: pd.DataFrame, mixed: str = "") -> dict:
    """What is written to the JSON: docs/fits.md says what it means."""
    found = minimum_rows(points)
    used = pd.DataFrame([row for row in found if row["used"]], columns=["flops", "n_opt", "d_opt"])
    budgets = [
        {
            "C": float(row["flops"]),
            "sizes": int(row["sizes"]),
            "N_opt": number(row.get("n_opt", np.nan)),
            "D_opt": number(row.get("d_opt", np.nan)),
            "L_opt": number(row.get("loss", np.nan)),
            "edge": row["edge"],
            "used": row["used"],
            "reason": row["reason"] or None,
        }
        for row in found
    ]
    few = f"{len(used)} of {len(found)} minima lie inside the sizes tried; an exponent needs three"
    a, ci_a, reason = exponent("a", used["flops"], used["n_opt"], mixed, few)
    b, ci_b, _ = exponent("b", used["flops"], used["d_opt"], mixed, few)
    return {
        "method": METHOD,
        "form": "N_opt ~ C^a, D_opt ~ C^b",
        "n": int(points["runs"].sum()),
        "a": a,
        "b": b,
        "ci": {"a": ci_a, "b": ci_b},
        "identified": not reason,
        "reason": reason or None,
        "budgets": budgets,
    }


def summary(result: dict) -> str:
    count = len(result["budgets"])
    lines = [f"{result['n']} points at {count} budget{'s' * (count != 1)}"]
    for row in result["budgets"]:
        mark = "" if row["used"] else f" (left out: {row['reason']})"
        lines.append(f"  C = {row['C']:.3g}: N_opt {shown(row['N_opt'])}, L_opt {shown(row['L_opt'])}{mark}")
    lines.append(f"  a  {shown(result['a'], result['ci']['a'])}")
    return "\n".join(lines + ([f"not identified: {result['reason']}"] if result["reason"] else []))
