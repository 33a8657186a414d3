"""How many of the 95 % intervals contain the truth, on simulated data, for every command and table with intervals.

    python benchmarks/coverage.py                   all parts: about 15 minutes on one idle core
    python benchmarks/coverage.py powerlaw gap      some of them
    python benchmarks/coverage.py --quick           the same with few files, for tests

A row is 400 files of one kind (200 curves). The errors of a file have one size for all points (same), halve with every
tenfold of N or x (falls), or are ten times as large for 3 % of the points (outliers). Beside each share is its own
standard error. A fit that is refused has no interval and is not counted; the column `given` shows how many have one.
The tables are in docs/fits.md and docs/compare.md. The draws are seeded.
"""

import argparse
import os
import sys
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from fits import LAW, points
from measure import markdown

from fvlm.analysis.compare.bootstrap import interval, pooled, resampled_sums
from fvlm.analysis.compare.factorial import effects
from fvlm.analysis.compare.gap import corrected, pair_rows
from fvlm.analysis.fits.envelope import crossings, frontier
from fvlm.analysis.fits.isoflop import exponents, minima
from fvlm.analysis.fits.sums import SQUARES, estimates

E, A, B, ALPHA, BETA = LAW
A_OPT = BETA / (ALPHA + BETA)
EXPONENT, FLOOR, EVERY = 0.346, 1.05, 8000  # of L(D) along a curve; samples between its evaluations
SPREADS = ("same", "falls", "outliers")


def errors(rng: np.random.Generator, spread: str, x: np.ndarray, size: float) -> np.ndarray:
    """Return the errors of log loss (n,) of points with these x."""
    error = size * rng.normal(size=len(x))
    if spread == "falls":
        decades = np.log10(x)
        error *= 0.5 ** (decades - decades.mean())
    if spread == "outliers":
        error *= np.where(rng.random(len(x)) < 0.03, 10, 1)
    return error


def share(held: list[bool]) -> str:
    """In percent, with its standard error."""
    if not held:
        return "-"
    part = np.mean(held)
    return f"{100 * part:.1f} ± {100 * np.sqrt(part * (1 - part) / len(held)):.1f}"


def held(fits: list[dict[str, tuple]], truth: dict[str, float]) -> list[str]:
    """Return cells: in how many files the first parameter has an interval, and the share of each that holds the truth.

    fits   of each file: name -> low, high; NaN if refused
    """
    cells = [f"{np.mean([np.isfinite(one[next(iter(truth))][0]) for one in fits]):.0%}"]
    for name, true in truth.items():
        ends = [one[name] for one in fits if np.isfinite(one[name][0])]
        cells.append(share([low <= true <= high for low, high in ends]))
    return cells


def judged(x: np.ndarray, losses: list[np.ndarray], names: tuple[str, ...], **options) -> list[dict[str, tuple]]:
    """Return of each file the ends of the interval of each parameter."""
    fits = [estimates(x, loss, names, **options)[1] for loss in losses]
    return [{one.name: (one.low, one.high) for one in own} for own in fits]


def fit(files: int, draws: int) -> str:
    truth, rows = {"exponent_N": ALPHA, "exponent_D": BETA, "N_opt_exponent": A_OPT, "E": E}, []
    for sizes, budgets, size in ((3, 4, 0.001), (6, 6, 0.004), (20, 12, 0.004)):
        x, _ = points(sizes, budgets)
        law = E + A * x[:, 0] ** -ALPHA + B * x[:, 1] ** -BETA
        for spread in SPREADS:
            rng = np.random.default_rng(1)
            losses = [law * np.exp(errors(rng, spread, x[:, 0], size)) for _ in range(files)]
            fits = judged(x, losses, ("N", "D"), draws=draws)
            rows.append([spread, len(x), f"{size:.1%}", *held(fits, truth)])
    return markdown(["error", "points", "its size", "given", "alpha", "beta", "a", "E"], rows)


def powerlaw(files: int, draws: int) -> str:
    truth, rows = {"exponent_C": EXPONENT, "E": FLOOR}, []
    for n in (6, 12, 40):
        x = np.geomspace(1e4, 1e6, n)
        for spread in SPREADS:
            rng = np.random.default_rng(1)
            cells = []
            for delta, log in ((1e-3, True), (SQUARES, False)):
                law = FLOOR + 14 * x**-EXPONENT
                losses = [law * np.exp(errors(rng, spread, x, 0.004)) for _ in range(files)]
                options = {"draws": draws, "delta": delta, "log": log}
                cells += held(judged(x[:, None], losses, ("C",), **options), truth)
            rows.append([spread, n, *cells])
    header = ["error", "points", "given", "alpha", "L_inf", "given, squares", "alpha, squares", "L_inf, squares"]
    return markdown(header, rows)


def few(files: int, draws: int) -> str:
    """Power laws without a floor, as of the budgets of a grid."""
    rows = []
    for n in (4, 6, 8, 12):
        x = np.geomspace(1e16, 1e19, n)
        for spread in SPREADS:
            rng = np.random.default_rng(1)
            losses = [40 * x**-0.1 * np.exp(errors(rng, spread, x, 0.004)) for _ in range(files)]
            fits = judged(x[:, None], losses, ("C",), floor=False, draws=draws)
            rows.append([spread, n, *held(fits, {"exponent_C": 0.1})])
    return markdown(["error", "points", "given", "exponent"], rows)


def curve(files: int, draws: int) -> str:
    """Along one curve: 80 evaluations whose errors (1 %) follow each other."""
    x, rows, files = EVERY * np.arange(1.0, 81), [], -(-files // 2)
    for rho in (0.0, 0.6, 0.75, 0.85):
        rng, cells = np.random.default_rng(1), []
        for delta, log in ((1e-3, True), (SQUARES, False)):
            losses = []
            for _ in range(files):
                noise = rng.normal(size=80)
                for i in range(1, 80):
                    noise[i] = rho * noise[i - 1] + np.sqrt(1 - rho**2) * noise[i]
                losses.append((FLOOR + 14 * x**-EXPONENT) * np.exp(0.01 * noise))
            fits = judged(x[:, None], losses, ("D",), block=None, draws=draws, delta=delta, log=log)
            cells += held(fits, {"exponent_D": EXPONENT})
        rows.append([rho, *cells])
    return markdown(["correlation", "given", "alpha", "given, squares", "alpha, squares"], rows, words=0)


def isoflop(files: int, draws: int) -> str:
    del draws
    dense, rows = np.geomspace(1e6, 1e12, 40001), []
    for budgets in (5, 9):
        flops = np.geomspace(6e18, 3e21, budgets)
        best = [np.log(dense[np.argmin(E + A * dense**-ALPHA + B * (c / 6 / dense) ** -BETA)]) for c in flops]
        for spread in SPREADS:
            rng, fits = np.random.default_rng(1), []
            for _ in range(files):
                parts, step = [], np.log(2)
                sizes = np.arange(np.log(5e6), np.log(2e11), step) + rng.uniform() * step
                for c, near in zip(flops, best, strict=True):
                    n = np.exp(sizes[np.abs(sizes - near) < 4 * step])
                    loss = (E + A * n**-ALPHA + B * (c / 6 / n) ** -BETA) * np.exp(errors(rng, spread, n, 0.001))
                    parts.append(pd.DataFrame({"budget": c, "N": n, "D": c / 6 / n, "C": c, "loss": loss}))
                own = exponents(minima(pd.concat(parts).assign(architecture="")))[0][0]
                fits.append({"a": (own.low, own.high)})
            rows.append([spread, budgets, *held(fits, {"a": A_OPT})])
    return markdown(["error", "budgets", "given", "a"], rows)


def envelope(files: int, draws: int) -> str:
    del draws
    rows = []
    for sizes in (8, 13):
        rng, fits = np.random.default_rng(1), []
        for _ in range(files):
            parts = []
            for i, n in enumerate(np.geomspace(2e7, 2e10, sizes)):
                d = np.geomspace(1e9, 2e11, 60)
                loss = (E + A * n**-ALPHA + B * d**-BETA) * np.exp(0.0005 * rng.normal(size=60))
                parts.append(pd.DataFrame({"run": f"r{i}", "N": n, "C": 6 * n * d, "D": d, "L": loss}))
            own = crossings(frontier(pd.concat(parts, ignore_index=True)))[1]
            fits.append({"a": (own.low, own.high)})
        rows.append([sizes, *held(fits, {"a": A_OPT})])
    return markdown(["sizes", "given", "a"], rows, words=0)


SIZES = (np.array([1.5e8, 4e8, 1e9]), np.array([1.6e8, 4.2e8, 1.04e9]))  # N of two architectures, three pairs
LEVELS = np.concatenate([side[0] * (side[1] / 1e9) ** -0.05 for side in zip((1.02, 1.0), SIZES, strict=True)])


def of_middle_pair(losses: np.ndarray, draws: np.ndarray | None) -> dict[str, tuple]:
    (row,) = pair_rows(list(SIZES), losses, draws, [("", (1, 1))])
    return {name: (row[f"{name}_low"], row[f"{name}_high"]) for name in ("raw", "at_foveated")}


def gap(files: int, draws: int) -> str:
    n, rows = np.concatenate(SIZES), []
    truth = corrected(SIZES[0], LEVELS[:3], SIZES[1], LEVELS[3:], 1)
    truth = {name: float(truth[name]) for name in ("raw", "at_foveated")}
    for over, counts in (("videos", (10, 40, 100)), ("seeds", (2, 3, 5))):
        for count in counts:
            for spread in SPREADS:
                rng, fits = np.random.default_rng(12345), []
                for file in range(files):
                    own = np.array([errors(rng, spread, n, 0.05 if over == "videos" else 0.01) for _ in range(count)]).T
                    if over == "seeds":
                        fits.append(of_middle_pair(LEVELS[:, None] * (1 + own), None))
                        continue
                    tokens, hard = video_tokens(rng, count), rng.gamma(4, 0.25, count)
                    loss = LEVELS[:, None] * hard * (1 + own) * tokens
                    sums = resampled_sums(loss, np.tile(tokens, (6, 1)), draws, seed=file)
                    means = sums[0] / sums[1]
                    fits.append(of_middle_pair(means[:, :1], means[:, 1:]))
                rows.append([over, spread, count, *held(fits, truth)[1:]])
    return markdown(["over", "error", "number", "raw", "at equal N"], rows, words=2)


def video_tokens(rng: np.random.Generator, count: int) -> np.ndarray:
    """Scored tokens of evaluation videos: 20, most within a factor of two."""
    return np.ceil(np.exp(rng.normal(3, 0.6, count)))


def videos(files: int, draws: int) -> str:
    """A loss, and the paired difference of two runs, with and without the widening for few videos."""
    rows = []
    for count in (5, 10, 40, 100):
        rng, fits = np.random.default_rng(12345), []
        for file in range(files):
            tokens, hard = video_tokens(rng, count), rng.gamma(4, 0.25, count)
            loss = hard * (2 + 0.2 * rng.normal(size=(2, count))) * tokens
            sums = resampled_sums(loss, np.tile(tokens, (2, 1)), draws, seed=file)
            drawn = (sums[0] / sums[1])[:, 1:]
            weights = np.random.default_rng(file).multinomial(count, np.full(count, 1 / count), size=draws).T
            plain = (loss @ weights) / (tokens @ weights)
            values = {"loss": drawn[0], "difference": drawn[0] - drawn[1]}
            values |= {"plain loss": plain[0], "plain difference": plain[0] - plain[1]}
            fits.append({name: interval(one) for name, one in values.items()})
        truth = {"loss": 2.0, "difference": 0.0, "plain loss": 2.0, "plain difference": 0.0}
        rows.append([count, *held(fits, truth)[1:]])
    return markdown(["videos", "loss", "difference", "loss, not widened", "difference, not widened"], rows, words=0)


def seeds(files: int, draws: int) -> str:
    """Student's t of paired differences, and Welch's of a 2 x 2 whose cells have other seeds each."""
    del draws
    rows = []
    for count in (2, 3, 5):
        rng, fits = np.random.default_rng(12345), []
        for _ in range(files):
            one = pooled(rng.normal(size=count))
            cells = [spread * rng.normal(size=count) for spread in (1, 1, 2, 0.5)]
            two = next(iter(effects(cells).values()))
            fits.append({"t": (one.low, one.high), "welch": (two.low, two.high)})
        rows.append([count, *held(fits, {"t": 0.0, "welch": 0.0})[1:]])
    return markdown(["seeds", "paired difference (t)", "effect over other seeds each (Welch)"], rows, words=0)


PARTS: dict[str, Callable[[int, int], str]] = {
    part.__name__: part for part in (fit, powerlaw, few, curve, isoflop, envelope, gap, videos, seeds)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--files", type=int, default=400, help="simulated files of each row (default 400)")
    parser.add_argument("--draws", type=int, default=400, help="resamples of each file (default 400)")
    parser.add_argument("--quick", action="store_true", help="3 files, 60 resamples")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"found {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    files, draws = (3, 60) if args.quick else (args.files, args.draws)
    for name in args.parts or PARTS:
        print(f"{name}: percent of the 95 % intervals that hold the truth, {files} files a row\n")
        print(f"{PARTS[name](files, draws)}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
