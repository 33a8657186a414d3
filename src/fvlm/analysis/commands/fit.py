"""L(N, D) = E + A/N^alpha + B/D^beta of a user's points (Hoffmann et al. 2022, approach 3)."""

import argparse

import pandas as pd

from fvlm.analysis.commands import bootstrap_words, interval, natural, number, positive, resamples, shown, write_result
from fvlm.analysis.commands.inputs import add_keep, read_kept
from fvlm.analysis.fits.points import RUNS, check_falls, longest_run, one_schedule
from fvlm.analysis.fits.sums import block_length, estimates

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
    parser.add_argument("points", help="CSV with columns N, D, L (and lr_schedule, where runs differ in it)")
    parser.add_argument("--out", required=True, help="the JSON file to write")
    add_keep(parser)
    parser.add_argument("--bootstrap", type=resamples, default=0, metavar="n", help="resamples for 95 %% intervals")
    parser.add_argument("--seed", type=natural, default=0, help="of the resamples (default 0)")
    parser.add_argument("--budget", type=positive, help="FLOPs at which N_opt is wanted (default: the largest here)")
    parser.add_argument(
        "--flops-per-nd", type=factor, default=6.0, help="C / (N D) (default 6); `C`: the median of that column's"
    )


def factor(text: str) -> float | None:
    """A positive number, or None for `C`."""
    return None if text == "C" else positive(text)


def main(args: argparse.Namespace) -> None:
    columns, words = ("N", "D", "L"), ("lr_schedule", *RUNS)
    spent = () if args.flops_per_nd else ("C",)
    points = read_kept(args.points, args.keep, (*columns, *spent), (*columns, *spent), words)
    check_falls(args.points, points, "D", beside=("N",))
    product = points["N"] * points["D"]
    flops_per_nd = args.flops_per_nd or float((points["C"] / product).median())
    budget = args.budget or flops_per_nd * float(product.max())
    result = joint_fit(points, args.bootstrap, args.seed, budget, flops_per_nd)
    write_result(args.points, args.out, result)
    print(summary(result))


def joint_fit(points: pd.DataFrame, draws: int, seed: int, budget: float, flops_per_nd: float) -> dict:
    """What is written to the JSON: docs/fits.md says what it means."""
    points = points.sort_values([name for name in (*RUNS, "D") if name in points], kind="stable")
    x, loss = points[["N", "D"]].to_numpy(), points["L"].to_numpy()
    block = 1 if longest_run(points) == 1 else None
    fit, found = estimates(x, loss, ("N", "D"), block=block, draws=draws, seed=seed, product=budget / flops_per_nd)
    values = {NAMES[one.name]: number(one.value) for one in found}
    ci = {NAMES[one.name]: interval(one.low, one.high) for one in found}
    reasons = {NAMES[one.name]: one.reason for one in found if one.reason}
    mixed = one_schedule(points)
    reason = mixed or reasons.get("alpha") or reasons.get("beta")
    if reason:
        refused = values if mixed else OF_N
        reasons |= {name: mixed or reasons.get(name) or reason for name in refused}
    values |= dict.fromkeys(reasons)
    ci |= dict.fromkeys(reasons)
    return {
        "method": METHOD,
        "form": "L(N, D) = E + A/N^alpha + B/D^beta; N_opt ~ C^a, D_opt ~ C^b, C = flops_per_ND N D",
        "n": len(points),
        **{name: values[name] for name in ("E", "A", "B", "alpha", "beta", "a", "b", "N_opt", "D_opt")},
        "budget": budget,
        "flops_per_ND": flops_per_nd,
        "objective": None if fit is None else fit.cost,
        "rmse_log": None if fit is None else fit.rmse,
        "identified": not reason,
        "reason": reason or None,
        "reasons": reasons,
        "ci": {name: ci[name] for name in values} if draws else None,
        "block": None if fit is None else block or block_length(fit.residuals),
        "bootstrap": bootstrap_words(draws, seed),
    }


def summary(result: dict) -> str:
    ci = result["ci"] or {}
    names = ("E", "A", "B", "alpha", "beta", "a", "b", "N_opt")
    lines = [f"{result['form'].split(';')[0]}: {result['n']} points, objective {shown(result['objective'])}"]
    lines += [f"  {name:6}{shown(result[name], ci.get(name))}" for name in names]
    lines[-1] += f" at {result['budget']:.3g} FLOPs"
    if not result["identified"]:
        lines.append(f"not identified: {result['reason']}")
    elif not ci:
        lines.append("no intervals: ask for them with --bootstrap 4000")
    elif result["E"] is None:
        lines.append(f"E: {result['reasons']['E']}")
    return "\n".join(lines)
