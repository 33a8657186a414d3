"""L(x) = A x^-alpha + L_inf of a user's points, by architecture or another column; x is compute C, samples D, or any
other column."""

import argparse

import numpy as np
import pandas as pd

from fvlm.analysis.commands import (
    bootstrap_words,
    interval,
    natural,
    number,
    resamples,
    separate_budgets,
    shown,
    write_result,
)
from fvlm.analysis.commands.inputs import add_keep, read_kept
from fvlm.analysis.fits.points import RUNS, check_falls, longest_run, one_schedule
from fvlm.analysis.fits.sums import DELTA, SQUARES, block_length, estimates
from fvlm.errors import UserError

TEXT = ("architecture", "lr_schedule", *RUNS)
LOSSES = {
    "huber": (DELTA, True, "Huber's loss (delta 1e-3) of log predicted - log observed"),
    "squares": (SQUARES, False, "squares of predicted - observed, in nats"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("points", help="CSV with columns x and L (and architecture, run, lr_schedule where there are)")
    parser.add_argument("--out", required=True, help="the JSON file to write")
    parser.add_argument("--x", default="C", help="column of x (default C)")
    parser.add_argument("--by", metavar="COLUMN", help="one fit for each of its values (default: architecture)")
    add_keep(parser)
    parser.add_argument("--loss", choices=LOSSES, default="huber", help="what is minimised (default huber)")
    parser.add_argument("--lowest", action="store_true", help="keep the lowest loss at each budget (x within 5 %%)")
    parser.add_argument(
        "--bootstrap", type=resamples, default=1000, metavar="n", help="resamples (default 1000; 0: none)"
    )
    parser.add_argument("--block", type=natural, default=0, help="points that stay together (default: as the data ask)")
    parser.add_argument("--seed", type=natural, default=0, help="of the resamples (default 0)")


def main(args: argparse.Namespace) -> None:
    if args.x in (*TEXT, "L"):
        raise UserError(f"--x {args.x}: expected a column of numbers such as C or D")
    if args.by in (args.x, "L"):
        raise UserError(f"--by {args.by}: expected a column that tells the points apart, such as run")
    by = args.by or "architecture"
    points = read_kept(args.points, args.keep, (args.x, "L"), (args.x, "L"), tuple(dict.fromkeys([*TEXT, by])))
    if args.by and args.by not in points:
        raise UserError(f"{args.points}: no column {args.by!r}; name another one with --by")
    fits = {name: power_law(_ordered(own, args), args) for name, own in _groups(args, points, by).items()}
    result = {
        "method": f"{LOSSES[args.loss][2]}, summed; the lowest minimum of descents from a grid of exponents",
        "form": f"L = A {args.x}^-alpha + L_inf",
        "x": args.x,
        "n": int(sum(one["n"] for one in fits.values())),
        "bootstrap": bootstrap_words(args.bootstrap, args.seed),
        "fits": fits,
    }
    write_result(args.points, args.out, result)
    print(summary(result))


def _groups(args: argparse.Namespace, points: pd.DataFrame, by: str) -> dict[str, pd.DataFrame]:
    """What is fitted by itself; rows that say nothing in the column of --by belong to none.

    raises  UserError where that leaves none, and where the loss of one rises
    """
    groups = dict(list(points.groupby(by, sort=False))) if by in points else {"all": points}
    if args.by:
        groups.pop("", None)
    if not groups:
        raise UserError(f"{args.points}: no row has a word in {by}; name another column with --by")
    for name, own in groups.items():
        check_falls(args.points, own, args.x, what=f" for {name}" if len(groups) > 1 else "")
    return groups


def _ordered(points: pd.DataFrame, args: argparse.Namespace) -> pd.DataFrame:
    """Run by run, each in the order of x, so that neighbours are neighbours on a curve."""
    runs = [name for name in RUNS if name in points][:1]
    if args.lowest:
        points = points.loc[points.groupby(separate_budgets(args.points, points[args.x].to_numpy()))["L"].idxmin()]
    return points.sort_values([*runs, args.x], kind="stable", ignore_index=True)


def power_law(points: pd.DataFrame, args: argparse.Namespace) -> dict:
    """One architecture's fit: docs/fits.md says what it means."""
    x, loss = points[args.x].to_numpy(), points["L"].to_numpy()
    delta, log, _ = LOSSES[args.loss]
    curve = longest_run(points) > 1
    block = args.block or (None if curve else 1)
    if args.block > max(1, len(points) // 2):
        raise UserError(
            f"--block {args.block}: {len(points)} points; expected half of them at most, or every resample is the same"
        )
    fit, found = estimates(x, loss, (args.x,), block=block, draws=args.bootstrap, seed=args.seed, delta=delta, log=log)
    names = {f"A_{args.x}": "A", f"exponent_{args.x}": "alpha", "E": "L_inf"}
    values = {names[one.name]: number(one.value) for one in found}
    ci = {names[one.name]: interval(one.low, one.high) for one in found}
    reasons = {names[one.name]: one.reason for one in found if one.reason}
    refused = one_schedule(points) or _pooled(points)
    reasons |= dict.fromkeys(values, refused) if refused else {}
    values |= dict.fromkeys(reasons)
    ci |= dict.fromkeys(reasons)
    return {
        "n": len(points),
        **{name: values[name] for name in names.values()},
        "identified": "alpha" not in reasons,
        "reason": reasons.get("alpha"),
        "reasons": reasons,
        "ci": {name: ci[name] for name in names.values()} if args.bootstrap else None,
        "block": None if fit is None else block or block_length(fit.residuals),
        "objective": None if fit is None else fit.cost,
        "rmse": None if fit is None else float(np.sqrt(np.mean((fit.predict(x) - loss) ** 2))),
        "optimum": None if fit is None else _optimum(fit),
        "warnings": _warnings(points, args.x),
    }


def _optimum(fit) -> dict:
    """Where the objective is lowest, whether or not the data identify it: a description of these points alone."""
    return {"A": float(fit.coefficients[0]), "alpha": float(fit.exponents[0]), "L_inf": fit.limit}


def _pooled(points: pd.DataFrame) -> str:
    """Why the curves of several runs whose learning rate decays have no one power law; empty if they are not that: at
    equal x the run that is nearer to its end has decayed further, and the lower loss."""
    runs, decays = _runs(points), _decays(points)
    if runs < 2 or longest_run(points) < 2 or not decays:
        return ""
    return (
        f"the curves of {runs} runs whose learning rate decays ({', '.join(decays)}) are pooled: use their ends alone"
    )


def _runs(points: pd.DataFrame) -> int:
    names = [name for name in RUNS if name in points]
    return points[names[0]].nunique() if names else 0


def _decays(points: pd.DataFrame) -> list[str]:
    """The schedules along which the learning rate is not constant."""
    return [name for name in points.get("lr_schedule", pd.Series(dtype=str)).unique() if name not in ("", "constant")]


def _warnings(points: pd.DataFrame, x: str) -> list[str]:
    """What the numbers cannot show."""
    found = []
    runs, decays = _runs(points), _decays(points)
    if runs > 1 and longest_run(points) > 1:
        found.append(f"the curves of {runs} runs are pooled: fit one run, or the final points of many")
    if decays and longest_run(points) > 1:
        found.append(f"along a run whose learning rate decays ({', '.join(decays)}) the loss follows no power law")
    if np.log(points[x]).round(6).duplicated().any():
        found.append(f"several points share a value of {x}; --lowest keeps the lowest, as a frontier needs")
    return found


def summary(result: dict) -> str:
    lines = [f"{result['form']}: {result['n']} points"]
    for name, one in result["fits"].items():
        ci = one["ci"] or {}
        told = ", ".join(f"{key} {shown(one[key], ci.get(key))}" for key in ("A", "alpha", "L_inf"))
        lines.append(f"  {name}: {one['n']} points, {told}")
        lines += [f"    not identified: {reason}" for reason in dict.fromkeys(one["reasons"].values())]
        lines += [f"    note: {text}" for text in one["warnings"]]
    return "\n".join(lines)
