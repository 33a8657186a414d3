"""The best model size along the lower envelope of training curves (Hoffmann et al. 2022, approach 1)."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from fvlm.analysis.commands import exponent, natural, number, shown, write_result
from fvlm.analysis.commands.inputs import add_keep, read_kept
from fvlm.analysis.fits.envelope import changes, envelope, warnings_of
from fvlm.analysis.fits.points import RUNS, check_falls, one_schedule
from fvlm.errors import UserError

METHOD = (
    "at log-spaced budgets the run with the lowest loss, curves interpolated in log L over log C; where the best size "
    "changes from one to another inside the sizes, their geometric mean is N_opt; a: slope of log N_opt on log C over "
    "these changes by least squares, 95 % t interval"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("curves", help="CSV with columns run (or run_id), N, C (or flops), L (and D where there is)")
    parser.add_argument("--out", required=True, help="the JSON file to write")
    add_keep(parser)
    parser.add_argument("--budgets", type=natural, default=200, help="log-spaced budgets (default 200)")
    parser.add_argument("--smooth", type=natural, default=1, help="points of a moving mean of log L (default 1: none)")


def main(args: argparse.Namespace) -> None:
    if args.budgets < 3:
        raise UserError(f"--budgets {args.budgets}: expected 3 or more")
    curves = read_curves(args.curves, args.keep)
    budgets = np.geomspace(curves["C"].min(), curves["C"].max(), args.budgets)
    table = envelope(curves, budgets, max(1, args.smooth))
    result = exponents(curves, table)
    write_result(args.curves, args.out, result)
    print(summary(result))


def read_curves(path: Path | str, keep: list[str]) -> pd.DataFrame:
    """Columns run, N, C, L, where there are D and lr_schedule; one run after the other, each in the order of C.

    raises  UserError for a run of two sizes, with two losses at one C, or whose loss rises
    """
    positive = ("N", "C", "flops", "L", "D")
    curves = read_kept(path, keep, ("N", "L"), positive, (*RUNS, "lr_schedule"))
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
