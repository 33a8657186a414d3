"""L(N, D) = E + A/N^alpha + B/D^beta of a user's points (Hoffmann et al. 2022, approach 3): `fvlm fit POINTS.csv`."""

import argparse

import pandas as pd

from fvlm.analysis.fits.points import check_falls, longest_run, one_schedule
from fvlm.analysis.fits.sums import as_fields, estimates
from fvlm.analysis.inputs import BLANK, add_files, finish, natural, positive, read, resamples, shown

METHOD = (
    "Huber's loss (delta 1e-3) of log predicted - log observed, summed over the points (Hoffmann et al. 2022, eq. 3); "
    "the lowest minimum of descents from a grid of exponents on which the rest is solved (variable projection)"
)
NAMES = {  # of an estimate -> in the JSON
    "E": "E",
    "A_N": "A",
    "A_D": "B",
    "exponent_N": "alpha",
    "exponent_D": "beta",
    "N_opt_exponent": "a",
    "D_opt_exponent": "b",
    "N_opt": "N_opt",
    "D_opt": "D_opt",
}
OF_N = ("E", "A", "alpha", "a", "b", "N_opt", "D_opt")  # not given unless both exponents are identified


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_files(parser, "points", "N, D, L; optional C, lr_schedule, run", "N=params,L=loss", needed=True)
    parser.add_argument("--bootstrap", type=resamples, default=0, metavar="n", help="resamples for 95 %% intervals")
    parser.add_argument("--seed", type=natural, default=0, help="of the resamples (default 0)")
    parser.add_argument("--budget", type=positive, help="FLOPs at which N_opt is wanted (default: the largest here)")
    parser.add_argument(
        "--flops-per-nd", type=factor, default=6.0, help="C / (N D) (default 6); `C`: the median of column C / (N D)"
    )


def factor(text: str) -> float | None:
    """A positive number, or None for `C`."""
    return None if text == "C" else positive(text)


def main(args: argparse.Namespace) -> None:
    columns = ("N", "D", "L") if args.flops_per_nd else ("N", "D", "L", "C")
    points = read(args.points, args, columns, ("lr_schedule", "run"), {"run": BLANK})
    check_falls(args.points, points, "D", beside=("N",))
    product = points["N"] * points["D"]
    flops_per_nd = args.flops_per_nd or float((points["C"] / product).median())
    budget = args.budget or flops_per_nd * float(product.max())
    finish(args.points, args.out, joint_fit(points, args.bootstrap, args.seed, budget, flops_per_nd), summary)


def joint_fit(points: pd.DataFrame, draws: int, seed: int, budget: float, flops_per_nd: float) -> dict:
    """Return the fields of the JSON, which docs/fits.md describes. points: N, D, L; optional lr_schedule, run."""
    points = points.sort_values([name for name in ("run", "D") if name in points], kind="stable")
    x, loss = points[["N", "D"]].to_numpy(), points["L"].to_numpy()
    block = 1 if longest_run(points) == 1 else None
    fit, judged = estimates(x, loss, ("N", "D"), block=block, draws=draws, seed=seed, product=budget / flops_per_nd)
    own = {NAMES[one.name]: one.reason for one in judged}
    mixed = one_schedule(points)
    reason = mixed or own["alpha"] or own["beta"]
    refused = {}
    if reason:
        refused = {name: mixed or own[name] or reason for name in (own if mixed else OF_N)}
    fields = as_fields(fit, judged, NAMES, refused, block, draws)
    return {
        "method": METHOD,
        "form": "L(N, D) = E + A/N^alpha + B/D^beta; N_opt ~ C^a, D_opt ~ C^b, C = flops_per_ND N D",
        "n": len(points),
        **fields,
        "budget": budget,
        "flops_per_ND": flops_per_nd,
        "rmse_log": None if fit is None else fit.rmse,
        "identified": not reason,
        "reason": reason or None,
        "bootstrap": bootstrap_record([fields], draws, seed),
    }


def bootstrap_record(fits: list[dict], draws: int, seed: int) -> dict | None:
    """How the intervals of fits (fields as of `as_fields`) were made; None without any."""
    drawn = sorted({one["resampled"] for one in fits if one["resampled"]})
    return {"of": " or ".join(drawn), "level": 0.95, "draws": draws, "seed": seed} if drawn else None


def intervals_line(record: dict) -> str:
    """The line of a summary about a record of `bootstrap_record`."""
    return f"intervals: 95 %, bootstrap of the {record['of']}, {record['draws']} resamples"


def summary(result: dict) -> list[str]:
    ci = result["ci"] or {}
    names = ("E", "A", "B", "alpha", "beta", "a", "b", "N_opt")
    lines = [f"{result['form'].split(';')[0]}: {result['n']} points, objective {shown(result['objective'])}"]
    lines += [f"  {name:6}{shown(result[name], ci.get(name))}" for name in names]
    lines[-1] += f" at {result['budget']:.3g} FLOPs"
    if ci and any(ci.values()):
        lines.append(intervals_line(result["bootstrap"]))
    if not result["identified"]:
        lines.append(f"not identified: {result['reason']}")
    elif not ci:
        lines.append("no intervals: add them with --bootstrap 4000")
    elif result["E"] is None:
        lines.append(f"E: {result['reasons']['E']}")
    return lines
