"""L(x) = A x^-alpha + L_inf of a user's points: `fvlm powerlaw POINTS.csv`. x is compute C, samples D or another
column; one fit per architecture, or per value of another column."""

import argparse

import numpy as np
import pandas as pd

from fvlm.analysis.fits.grid import separate_budgets
from fvlm.analysis.fits.joint import bootstrap_record, intervals_line
from fvlm.analysis.fits.points import check_falls, longest_run, one_schedule
from fvlm.analysis.fits.sums import DELTA, SQUARES, as_fields, estimates
from fvlm.analysis.inputs import BLANK, KINDS, SIZE, WORD, add_files, finish, natural, read, resamples, shown
from fvlm.errors import UserError

LOSSES = {  # delta, of log loss, in words
    "huber": (DELTA, True, "Huber's loss (delta 1e-3) of log predicted - log observed"),
    "squares": (SQUARES, False, "squares of predicted - observed, in nats"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_files(parser, "points", "x, L; optional architecture, run, lr_schedule", "L=loss,run=name", needed=True)
    parser.add_argument("--x", default="C", help="column of x (default C)")
    parser.add_argument("--by", metavar="COLUMN", help="one fit for each of its values (default: architecture)")
    parser.add_argument("--loss", choices=LOSSES, default="huber", help="the loss to minimise (default huber)")
    parser.add_argument("--lowest", action="store_true", help="keep the lowest loss at each budget (x within 5 %%)")
    parser.add_argument(
        "--bootstrap", type=resamples, default=1000, metavar="n", help="resamples (default 1000; 0: none)"
    )
    parser.add_argument(
        "--block", type=natural, default=0, help="points that stay together (default: from the correlation)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of the resamples (default 0)")


def main(args: argparse.Namespace) -> None:
    if args.x in ("run_id", "L") or KINDS.get(args.x) in (WORD, BLANK):
        raise UserError(f"--x {args.x}: expected a column of numbers such as C or D")
    if args.by in (args.x, "L"):
        raise UserError(f"--by {args.by}: expected a column that separates the points, such as run")
    by, words = args.by or "architecture", ("architecture", "lr_schedule", "run")
    needed = (args.x, "L", args.by) if args.by else (args.x, "L")
    points = read(args.points, args, needed, (*words, by), {args.x: SIZE} | dict.fromkeys((*words, by), BLANK))
    groups = dict(list(points.groupby(by, sort=False))) if by in points else {"all": points}
    if args.by:
        groups.pop("", None)  # rows with an empty cell belong to no group
    if not groups:
        raise UserError(f"{args.points}: no row has a word in {by}; name another column with --by")
    for name, own in groups.items():
        check_falls(args.points, own, args.x, what=f" for {name}" if len(groups) > 1 else "")
    fits = {name: power_law(_ordered(own, args), args) for name, own in groups.items()}
    result = {
        "method": f"{LOSSES[args.loss][2]}, summed; the lowest minimum of descents from a grid of exponents",
        "form": f"L = A {args.x}^-alpha + L_inf",
        "x": args.x,
        "n": sum(one["n"] for one in fits.values()),
        "bootstrap": bootstrap_record(list(fits.values()), args.bootstrap, args.seed),
        "fits": fits,
    }
    finish(args.points, args.out, result, summary)


def _ordered(points: pd.DataFrame, args: argparse.Namespace) -> pd.DataFrame:
    """Run by run, each in the order of x, so that neighbours are neighbours on a curve."""
    if args.lowest:
        points = points.loc[points.groupby(separate_budgets(args.points, points[args.x].to_numpy()))["L"].idxmin()]
    by = ["run", args.x] if "run" in points else [args.x]
    return points.sort_values(by, kind="stable", ignore_index=True)


def power_law(points: pd.DataFrame, args: argparse.Namespace) -> dict:
    """Return the fields of one fit, which docs/fits.md describes."""
    x, loss = points[args.x].to_numpy(), points["L"].to_numpy()
    delta, log, _ = LOSSES[args.loss]
    block = args.block or (None if longest_run(points) > 1 else 1)
    if args.block > max(1, len(points) // 2):
        raise UserError(
            f"--block {args.block}: {len(points)} points; expected half of them at most, or every resample is the same"
        )
    fit, judged = estimates(x, loss, (args.x,), block=block, draws=args.bootstrap, seed=args.seed, delta=delta, log=log)
    names = {f"A_{args.x}": "A", f"exponent_{args.x}": "alpha", "E": "L_inf"}
    refused, warnings = _warnings(points, args.x)
    refused = one_schedule(points) or refused
    reasons = dict.fromkeys(names.values(), refused) if refused else {}
    fields = as_fields(fit, judged, names, reasons, block, args.bootstrap)
    optimum = None
    if fit is not None:  # where the objective is lowest, identified or not
        optimum = {"A": fit.coefficients[0], "alpha": fit.exponents[0], "L_inf": fit.limit}
    return {
        "n": len(points),
        **fields,
        "identified": "alpha" not in fields["reasons"],
        "reason": fields["reasons"].get("alpha"),
        "rmse": None if fit is None else float(np.sqrt(np.mean((fit.predict(x) - loss) ** 2))),
        "optimum": optimum,
        "warnings": warnings,
    }


def _warnings(points: pd.DataFrame, x: str) -> tuple[str, list[str]]:
    """Return why these points have no one power law (empty if they may have one), and warnings.

    The curves of several runs with a decaying learning rate have none: at equal x the run that is nearer to its end
    has decayed further, and has the lower loss.
    """
    refused, warnings, curves = "", [], longest_run(points) > 1
    runs = points["run"].nunique() if "run" in points else 0
    schedules = points["lr_schedule"].unique() if "lr_schedule" in points else ()
    decays = ", ".join(name for name in schedules if name not in ("", "constant"))
    if curves and runs > 1:
        warnings.append(f"the curves of {runs} runs are pooled: fit one run, or the final points of many")
    if curves and decays:
        warnings.append(f"along a run whose learning rate decays ({decays}) the loss follows no power law")
    if len(warnings) == 2:
        refused = f"the curves of {runs} runs whose learning rate decays ({decays}) are pooled: use their ends alone"
    if np.log(points[x]).round(6).duplicated().any():
        warnings.append(f"several points share a value of {x}; --lowest keeps the lowest, as a frontier needs")
    return refused, warnings


def summary(result: dict) -> list[str]:
    lines = [f"{result['form']}: {result['n']} points"]
    for name, one in result["fits"].items():
        ci = one["ci"] or {}
        values = ", ".join(f"{key} {shown(one[key], ci.get(key))}" for key in ("A", "alpha", "L_inf"))
        lines.append(f"  {name}: {one['n']} points, {values}")
        lines += [f"    not identified: {reason}" for reason in dict.fromkeys(one["reasons"].values())]
        lines += [f"    note: {text}" for text in one["warnings"]]
    return lines + ([intervals_line(result["bootstrap"])] if result["bootstrap"] else [])
