"""How often the analysis is right on simulated data whose truth is known: false and found jumps, the error of the
iso-FLOP exponent, terms found where there are none. coverage.py counts how often intervals are right.

    python benchmarks/rates.py                    all of it: about ten minutes
    python benchmarks/rates.py jumps isoflop      some of it
    python benchmarks/rates.py --quick            the same with few simulations, for tests

It prints the tables of docs/compare.md and docs/fits.md. The draws are seeded, so the numbers are the same each time,
except for the rounding of another machine.
"""

import argparse
import os
import sys
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from fits import LAW
from measure import markdown
from scipy.interpolate import Akima1DInterpolator

from fvlm.analysis.fits.curves import find_jumps
from fvlm.analysis.fits.isoflop import minima
from fvlm.analysis.fits.sums import Estimate, estimates

E, A, B, ALPHA, BETA = LAW
A_OPT = BETA / (ALPHA + BETA)
EVERY = 8000  # samples between evaluations
BUDGETS = np.geomspace(6e18, 3e21, 6)


def curves_of(rng: np.random.Generator, runs: int, n: int, noise: float, jump: float) -> dict:
    """Power laws in samples with a floor, independent noise of log loss, and a jump of log loss in the middle."""
    samples = EVERY * np.arange(1.0, n + 1)
    step = jump * (np.arange(n) >= n // 2)
    laws = (1.05 + rng.uniform(5, 30) * samples ** -rng.uniform(0.2, 0.5) for _ in range(runs))
    return {str(run): (samples, law * np.exp(noise * rng.normal(size=n) + step)) for run, law in enumerate(laws)}


def jumps(quick: bool) -> str:
    files, rows = (5 if quick else 400), []
    for runs, n in ((2, 80), (5, 80), (5, 300), (25, 46)):
        for noise in (0.002, 0.005, 0.01, 0.02):
            rng = np.random.default_rng(5)
            false = sum(bool(find_jumps(curves_of(rng, runs, n, noise, 0.0))[0]) for _ in range(files))
            found = [find_jumps(curves_of(rng, runs, n, noise, -0.03))[0] for _ in range(files)]
            middle = EVERY * (n // 2)
            places = [[jump.iloc[0][["from_samples", "to_samples"]] for jump in one] for one in found]
            hit = sum(any(low <= middle < high for low, high in one) for one in places)
            rows.append([runs, n, f"{noise:.1%}", f"{false / files:.1%}", f"{hit / files:.0%}"])
    header = ["runs", "evaluations each", "noise", "files with a false jump", "a jump of 3 % found"]
    return f"{files} files each\n\n{markdown(header, rows, words=0)}"


def isoflop_ways() -> dict[str, Callable]:
    """Name -> function of one budget's points (log N ascending, loss) that gives log N_opt, NaN where there is none."""

    def parabola(width: int) -> Callable:
        def minimum(x: np.ndarray, loss: np.ndarray) -> float:
            lowest = int(np.argmin(loss))
            first = min(max(0, lowest - width // 2), max(0, len(x) - width))
            near = slice(first, first + width)
            curvature, slope, _ = np.polyfit(x[near] - x[lowest], loss[near], 2)
            return x[lowest] - slope / (2 * curvature) if curvature > 0 else np.nan

        return minimum

    def akima(x: np.ndarray, loss: np.ndarray) -> float:
        lowest = int(np.argmin(loss))
        at = np.linspace(x[lowest - 1], x[lowest + 1], 2001)
        return at[np.argmin(Akima1DInterpolator(x, loss)(at))]

    def ours(x: np.ndarray, loss: np.ndarray) -> float:
        n = np.exp(x)
        own = pd.DataFrame({"architecture": "", "budget": "", "N": n, "C": 1.0, "D": 1 / n, "loss": loss})
        (row,) = minima(own).to_dict("records")
        return np.log(row["n_opt"]) if row["used"] else np.nan

    return {"ours (5 points)": ours, "3 points": parabola(3), "Akima": akima, "all points": parabola(99)}


def loss_at(n: np.ndarray, flops: float) -> np.ndarray:
    return E + A * n**-ALPHA + B * (flops / 6 / n) ** -BETA


def slope_of(way: Callable, ratio: float, noise: float, seed: int) -> float:
    """The exponent a that a way of finding minima gives on one grid: sizes `ratio` times apart, at each budget those
    within four of them of the optimum."""
    rng, dense = np.random.default_rng(seed), np.geomspace(1e7, 1e11, 20001)
    shift, step = rng.uniform(), np.log(ratio)
    sizes = np.arange(np.log(2e7), np.log(5e10), step) + shift * step
    found = []
    for flops in BUDGETS:
        x = sizes[np.abs(sizes - np.log(dense[np.argmin(loss_at(dense, flops))])) < 4 * step]
        loss = loss_at(np.exp(x), flops) * np.exp(noise * rng.normal(size=len(x)))
        inside = 0 < np.argmin(loss) < len(x) - 1
        found.append(way(x, loss) if inside else np.nan)
    known = np.isfinite(found)
    return np.polyfit(np.log(BUDGETS[known]), np.array(found)[known], 1)[0] if known.sum() > 2 else np.nan


def isoflop(quick: bool) -> str:
    grids, rows = (4 if quick else 200), []
    for ratio, noise in ((2, 0.0), (2, 0.0005), (2, 0.002), (3, 0.0), (3, 0.0005), (3, 0.002)):
        errors = [
            np.sqrt(np.nanmean([(slope_of(way, ratio, noise, seed) - A_OPT) ** 2 for seed in range(grids)]))
            for way in isoflop_ways().values()
        ]
        rows.append([ratio, f"{noise:.2%}", *(f"{error:.4f}" for error in errors)])
    header = ["sizes apart", "noise of L", *isoflop_ways()]
    return f"root mean square error of a, {grids} grids each\n\n{markdown(header, rows, words=0)}"


def joint(x: np.ndarray, loss: np.ndarray, draws: int) -> dict[str, Estimate]:
    return {one.name: one for one in estimates(x, loss, ("N", "D"), draws=draws)[1]}


def nothing_there(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses that do not depend on N."""
    rng = np.random.default_rng(seed)
    x = np.exp(rng.uniform(np.log([1e7, 1e9]), np.log([1e10, 1e12]), (n, 2)))
    return x, (1.7 + 0.3 * (x[:, 1] / 1e10) ** -0.3) * np.exp(0.003 * rng.normal(size=n))


def vanishing(quick: bool) -> str:
    files, rows = (3 if quick else 200), []
    for n in (12, 48, 200):
        wrong = [
            np.mean([not joint(*nothing_there(seed, n), draws)["exponent_N"].reason for seed in range(files)])
            for draws in (0, 60 if quick else 300)
        ]
        rows.append([n, *(f"{share:.1%}" for share in wrong)])
    header = ["points", "without intervals", "with intervals"]
    return f"loss without N, yet alpha called identified; {files} files each\n\n{markdown(header, rows, words=0)}"


PARTS = {"jumps": jumps, "isoflop": isoflop, "vanishing": vanishing}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="few simulations")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"found {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    for name in args.parts or PARTS:
        print(f"{name}: {PARTS[name](args.quick)}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
