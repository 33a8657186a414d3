"""The best model size along the lower envelope of training curves (Hoffmann et al. 2022, approach 1)."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from fvlm.analysis.commands import exponent, natural, number, shown, write_result
from fvlm.analysis.points import RUNS, check_falls, one_schedule, read_points
from fvlm.errors import UserError

APART = 2.0  # C of one point of a curve / C of the last: beyond, a straight line between them misses the curve
METHOD = (
    "at log-spaced budgets the run with the lowest loss, curves interpolated in log L over log C; where the best size "
    "changes from one to another inside the sizes, their geometric mean is N_opt; a: slope of log N_opt on log C over "
    "these changes by least squares, 95 % t interval"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("curves", help="CSV with columns run (or run_id), N, C (or flops), L (and D where there is)")
    parser.add_argument("--out", required=True, help="the JSON file to write")
    parser.add_argument("--budgets", type=natural, default=200, help="log-spaced budgets (default 200)")
    parser.add_argument("--smooth", type=natural, default=1, help="points of a moving mean of log L (default 1: none)")


def main(args: argparse.Namespace) -> None:
    if args.budgets < 3:
        raise UserError(f"--budgets {args.budgets}: expected 3 or more")
    curves = read_curves(args.curves)
    budgets = np.geomspace(curves["C"].min(), curves["C"].max(), args.budgets)
    table = envelope(curves, budgets, max(1, args.smooth))
    result = exponents(curves, table)
    write_result(args.curves, args.out, result)
    print(summary(result))


def read_curves(path: Path | str) -> pd.DataFrame:
    """Columns run, N, C, L, where there are D and lr_schedule; one run after the other, each in the order of C.

    raises  UserError for a run of two sizes, with two losses at one C, or whose loss rises
    """
    positive = ("N", "C", "flops", "L", "D")
    curves = read_points(path, ("N", "L"), positive, ("C", "flops", "D", *RUNS, "lr_schedule"), (*RUNS, "lr_schedule"))
    for name, others in (("run", RUNS), ("C", ("C", "flops"))):
        found = [other for other in others if other in curves]
        if not found:
            raise UserError(
                f"{path}: no column {' or '.join(map(repr, others))}; expected run, N, C and L: rename them"
            )
        curves = curves.rename(columns={found[0]: name})
    for run, own in curves.groupby("run", sort=False):
        if own["N"].nunique() > 1:
            raise UserError(f"{path}: run {run} has {own['N'].nunique()} values of N; expected one: split the run")
        if own["C"].duplicated().any():
            twice = own.loc[own["C"].duplicated(), "C"].iloc[0]
            raise UserError(f"{path}: run {run} has two losses at C = {twice:g}; expected one: remove the other")
        check_falls(path, own, "C", what=f" in run {run}")
    return curves.sort_values(["run", "C"], ignore_index=True)


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


def exponents(curves: pd.DataFrame, table: pd.DataFrame) -> dict:
    """What is written to the JSON: docs/fits.md says what it means."""
    found = changes(table)
    few = f"the best size changes {len(found)} times along the envelope; an exponent needs three changes: more sizes"
    mixed = one_schedule(curves)
    a, ci_a, reason = exponent("a", found["C"], found["N_opt"], mixed, few)
    b, ci_b, _ = exponent("b", found["C"], found["D_opt"], mixed, few)
    return {
        "method": METHOD,
        "form": "N_opt ~ C^a, D_opt ~ C^b",
        "n": len(curves),
        "runs": int(curves["run"].nunique()),
        "sizes": int(curves["N"].nunique()),
        "a": a,
        "b": b,
        "ci": {"a": ci_a, "b": ci_b},
        "identified": not reason,
        "reason": reason or None,
        "warnings": warnings_of(curves),
        "changes": [{name: number(value) for name, value in row.items()} for row in found.to_dict("records")],
        "budgets": [_budget(row) for row in table.to_dict("records")],
    }


def warnings_of(curves: pd.DataFrame) -> list[str]:
    """What the numbers cannot show."""
    steps = {run: own["C"].to_numpy() for run, own in curves.groupby("run", sort=False)}
    sparse = [run for run, c in steps.items() if len(c) < 2 or (c[1:] / c[:-1]).max() > APART]
    if not sparse:
        return []
    return [
        f"{len(sparse)} of {len(steps)} curves ({sparse[0]}, ...) have neighbouring points more than {APART:g} times "
        "apart in C: what lies between is interpolated, and a may be off by more than its interval"
    ]


def _budget(row: dict) -> dict:
    run = row.get("run")
    return {
        "C": row["C"],
        "run": run if isinstance(run, str) else None,
        **{name: number(row.get(name, np.nan)) for name in ("N_opt", "D_opt", "L_opt")},
        **{name: row[name] for name in ("sizes", "edge", "used")},
        "reason": row["reason"] or None,
    }


def summary(result: dict) -> str:
    used = sum(row["used"] for row in result["budgets"])
    lines = [
        f"{result['runs']} runs of {result['sizes']} sizes, {result['n']} points",
        f"  inside the sizes at {used} of {len(result['budgets'])} budgets; the best size changes at:",
    ]
    lines += [f"    C = {row['C']:.3g}: N_opt {shown(row['N_opt'])}" for row in result["changes"]]
    lines.append(f"  a  {shown(result['a'], result['ci']['a'])}")
    lines += [f"note: {text}" for text in result["warnings"]]
    return "\n".join(lines + ([f"not identified: {result['reason']}"] if result["reason"] else []))
