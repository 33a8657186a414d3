"""The lower envelope of training curves (Hoffmann et al. 2022, approach 1): the best run at each compute. Also the
command `fvlm envelope CURVES.csv`."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from fvlm.analysis.fits.points import check_falls, one_schedule
from fvlm.analysis.fits.slopes import log_slope, size_exponents
from fvlm.analysis.fits.sums import Estimate
from fvlm.analysis.inputs import add_files, finish, natural, read, shown
from fvlm.errors import UserError

STEPS = 200  # budgets at which training curves are compared
APART = 2.0  # C of one point of a curve / C of the last: beyond, a straight line between them misses the curve
METHOD = (
    "at log-spaced budgets the run with the lowest loss, curves interpolated in log L over log C; where the best size "
    "changes from one to another inside the sizes, their geometric mean is N_opt; a: slope of log N_opt on log C over "
    "these changes by least squares, 95 % t interval"
)


def frontier(curves: pd.DataFrame, steps: int = STEPS, smooth: int = 1) -> pd.DataFrame:
    """Return the lowest loss of any curve at log-spaced C, as `envelope`. curves: run, N, C, L and where there is D,
    each run in the order of C."""
    if curves.empty:
        return pd.DataFrame({"sizes": [], "N_opt": [], "used": []})
    return envelope(curves, np.geomspace(curves["C"].min(), curves["C"].max(), steps), smooth)


def envelope(curves: pd.DataFrame, budgets: np.ndarray, smooth: int = 1) -> pd.DataFrame:
    """One row per budget: C, run, N_opt, D_opt, L_opt, sizes (that have a loss there), edge, used, reason."""
    runs = [own for _, own in curves.groupby("run", sort=False)]
    sizes = np.array([own["N"].iloc[0] for own in runs])
    losses = np.array([_at(own, "L", budgets, smooth) for own in runs])  # (runs, budgets)
    samples = np.array([_at(own, "D", budgets) if "D" in own else np.full(len(budgets), np.nan) for own in runs])
    rows = []
    for i, budget in enumerate(budgets):
        here = np.isfinite(losses[:, i])
        if not here.any():
            rows.append({"C": budget, "sizes": 0, "edge": False, "used": False, "reason": "no run has a loss here"})
            continue
        best = int(np.nanargmin(losses[:, i]))
        present, reason = np.unique(sizes[here]), ""
        edge = sizes[best] in (present[0], present[-1])
        if len(present) == 1:
            reason = "one size alone has a loss here"
        elif edge:
            reason = f"the {'smallest' if sizes[best] == present[0] else 'largest'} size is best"
        row = {"C": budget, "run": runs[best]["run"].iloc[0], "N_opt": sizes[best], "D_opt": samples[best, i]}
        row |= {"L_opt": losses[best, i], "sizes": len(present), "edge": bool(edge), "used": not edge, "reason": reason}
        rows.append(row)
    return pd.DataFrame(rows)


def _at(curve: pd.DataFrame, column: str, budgets: np.ndarray, smooth: int = 1) -> np.ndarray:
    """A column of one run at the budgets, in log-log; NaN before its first and after its last point."""
    values = np.log(curve[column].to_numpy())
    smooth = min(smooth, len(values))
    count = np.convolve(np.ones_like(values), np.ones(smooth), "same")
    values = np.convolve(values, np.ones(smooth), "same") / count
    flops = curve["C"].to_numpy()
    inside = (budgets >= flops[0] * (1 - 1e-12)) & (budgets <= flops[-1] * (1 + 1e-12))
    return np.where(inside, np.exp(np.interp(np.log(budgets), np.log(flops), values)), np.nan)


def changes(table: pd.DataFrame) -> pd.DataFrame:
    """Where the best size changes: C, N_opt and D_opt, geometric means of both sides; one row per pair of sizes, since
    noise lets curves cross more than once. Budgets where all sizes but one have ended are left out."""
    rows = []
    for (_, one), (_, two) in zip(table.iloc[:-1].iterrows(), table.iloc[1:].iterrows(), strict=True):
        if min(one["sizes"], two["sizes"]) > 1 and one["N_opt"] != two["N_opt"] and (one["used"] or two["used"]):
            pair = tuple(sorted((one["N_opt"], two["N_opt"])))
            rows.append(
                {"pair": pair} | {name: np.log([one[name], two[name]]).mean() for name in ("C", "N_opt", "D_opt")}
            )
    if not rows:
        return pd.DataFrame(columns=["C", "N_opt", "D_opt"], dtype=float)
    return np.exp(pd.DataFrame(rows).groupby("pair").mean()).sort_values("C", ignore_index=True)


def crossings(table: pd.DataFrame, optimum: str = "N_opt") -> tuple[pd.DataFrame, Estimate]:
    """Return where the best size changes along a frontier, and the exponent of N_opt (or D_opt) in C there."""
    found = changes(table)
    few = f"{len(found)} change{'s' * (len(found) != 1)} of the best size along the curves; an exponent needs three"
    return found, log_slope(optimum, found["C"], found[optimum], few)[0]


def warnings_of(curves: pd.DataFrame) -> list[str]:
    """Return warnings about curves whose points lie far apart."""
    steps = {run: own["C"].to_numpy() for run, own in curves.groupby("run", sort=False)}
    sparse = [run for run, c in steps.items() if len(c) < 2 or (c[1:] / c[:-1]).max() > APART]
    if not sparse:
        return []
    return [
        f"{len(sparse)} of {len(steps)} curves ({sparse[0]}, ...) have neighbouring points more than {APART:g} times "
        "apart in C: what lies between is interpolated, and a may be off by more than its interval"
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_files(parser, "curves", "run, N, C, L; optional D, lr_schedule", "run=name,L=loss", needed=True)
    parser.add_argument("--budgets", type=natural, default=STEPS, help=f"log-spaced budgets (default {STEPS})")
    parser.add_argument("--smooth", type=natural, default=1, help="points of a moving mean of log L (default 1: none)")


def main(args: argparse.Namespace) -> None:
    if args.budgets < 3:
        raise UserError(f"--budgets {args.budgets}: expected 3 or more")
    curves = read_runs(args.curves, args)
    table = frontier(curves, args.budgets, max(1, args.smooth))
    (found, n_opt), (_, d_opt) = crossings(table), crossings(table, "D_opt")
    result = {
        "method": METHOD,
        "form": "N_opt ~ C^a, D_opt ~ C^b",
        "n": len(curves),
        "runs": int(curves["run"].nunique()),
        "sizes": int(curves["N"].nunique()),
        **size_exponents(n_opt, d_opt, one_schedule(curves)),
        "warnings": warnings_of(curves),
        "changes": found.to_dict("records"),
        "budgets": [row | {"reason": row["reason"] or None} for row in table.to_dict("records")],
    }
    finish(args.curves, args.out, result, summary)


def read_runs(path: Path | str, args: argparse.Namespace) -> pd.DataFrame:
    """Return columns run, N, C, L, where there are D and lr_schedule; each run in the order of C.

    raises  UserError for a run of two sizes, with two losses at one C, or whose loss rises
    """
    curves = read(path, args, ("run", "N", "C", "L"), ("D", "lr_schedule"))
    for run, own in curves.groupby("run", sort=False):
        if own["N"].nunique() > 1:
            raise UserError(f"{path}: run {run} has {own['N'].nunique()} values of N; expected one: split the run")
        if own["C"].duplicated().any():
            twice = own.loc[own["C"].duplicated(), "C"].iloc[0]
            raise UserError(f"{path}: run {run} has two losses at C = {twice:g}; expected one: remove the other")
        check_falls(path, own, "C", what=f" in run {run}")
    return curves.sort_values(["run", "C"], ignore_index=True)


def summary(result: dict) -> list[str]:
    used = sum(row["used"] for row in result["budgets"])
    lines = [
        f"{result['runs']} runs of {result['sizes']} sizes, {result['n']} points",
        f"  inside the sizes at {used} of {len(result['budgets'])} budgets; the best size changes at:",
    ]
    lines += [f"    C = {row['C']:.3g}: N_opt {shown(row['N_opt'])}" for row in result["changes"]]
    lines.append(f"  a  {shown(result['a'], result['ci']['a'])}")
    lines += [f"note: {text}" for text in result["warnings"]]
    return lines + ([f"not identified: {result['reason']}"] if result["reason"] else [])
