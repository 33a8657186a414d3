"""How long a fit of L(N, D) and its bootstrap take, against scipy as commonly used.

    python benchmarks/fits.py --json fits.json      three problems: about ten minutes
    python benchmarks/fits.py --quick               the same within seconds, for tests: few starts, few resamples

The plain way is that of Hoffmann et al. (2022): L-BFGS-B with finite differences from each of the 4,500 starts of their
grid, the lowest objective wins; of the bootstrap, the same optimizer from the fit of the data, resample by resample.
Points are drawn from a known law with heavy-tailed noise. Before anything is timed the two are compared: our objective
must not be higher, and scipy's optimum, refined with analytic gradients and tight tolerances, must be ours. Counted is
CPU time in one process and one thread; ours is the median over the turns, the plain way runs once, its bootstrap once
with scipy's tolerances and once with tight ones; how far it ends above the optimum is told beside it.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.optimize import minimize

from fvlm.analysis.fits.descent import EXPONENTS
from fvlm.analysis.fits.sums import DELTA, PowerLaws, fit_power_laws, resampled_points
from fvlm.analysis.fits.sums import bootstrap as draw

LAW = (1.69, 406.4, 410.7, 0.34, 0.28)  # E, A, B, alpha, beta: Hoffmann et al. 2022, eq. 10
TERMS, FLOORS, POWERS = (0, 5, 10, 15, 20, 25), (-1, -0.5, 0, 0.5, 1), (0, 0.5, 1, 1.5, 2)
STARTS = list(itertools.product(TERMS, TERMS, FLOORS, POWERS, POWERS))  # a, b, e, alpha, beta
RESAMPLES, CHECKED = 4000, 200  # of a bootstrap; of them compared with scipy's refined optimum
PROBLEMS = ((8, 6, 0.005, 1), (20, 12, 0.005, 1), (12, 10, 0.02, 7))  # sizes, budgets, noise, seed
BOUNDS = [(None, None)] * 3 + [EXPONENTS] * 2


def points(sizes: int, budgets: int, noise: float = 0.005, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) and losses of sizes x budgets."""
    rng = np.random.default_rng(seed)
    n, c = (part.ravel() for part in np.meshgrid(np.geomspace(5e7, 1e10, sizes), np.geomspace(6e18, 3e21, budgets)))
    x = np.column_stack([n, c / (6 * n)])
    e, a, b, alpha, beta = LAW
    loss = e + a * x[:, 0] ** -alpha + b * x[:, 1] ** -beta
    return x, loss * np.exp(noise * rng.standard_t(3, size=len(x)))


def objective(p: np.ndarray, log_x: np.ndarray, log_loss: np.ndarray, weights: np.ndarray | float = 1.0) -> float:
    """Hoffmann et al. 2022, eq. 3: log-sum-exp of (a - alpha log N, b - beta log D, e), Huber's loss; `weights` of the
    points."""
    a, b, e, alpha, beta = p
    predicted = np.logaddexp(np.logaddexp(a - alpha * log_x[:, 0], b - beta * log_x[:, 1]), e)
    size = np.abs(predicted - log_loss)
    return (weights * np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))).sum()


def with_gradient(
    p: np.ndarray, log_x: np.ndarray, log_loss: np.ndarray, weights: np.ndarray | float = 1.0
) -> tuple[float, np.ndarray]:
    """A thousand times the objective, so that tolerances are tight, and its gradient."""
    a, b, e, alpha, beta = p
    parts = np.array([a - alpha * log_x[:, 0], b - beta * log_x[:, 1], np.full(len(log_x), e)])
    predicted = np.logaddexp.reduce(parts, axis=0)
    pull = weights * np.clip(predicted - log_loss, -DELTA, DELTA)
    of_parts = np.exp(parts - predicted) * pull
    gradient = np.array([*of_parts.sum(axis=1), *-(of_parts[:2] * log_x.T).sum(axis=1)])
    return 1e3 * objective(p, log_x, log_loss, weights), 1e3 * gradient


def plain(start: np.ndarray, *data: np.ndarray, tight: bool = False):
    """From one start to scipy's answer, finite differences; tight: of a thousand times the objective, to 1e-12."""
    scale, options = (1e3, {"ftol": 1e-12, "gtol": 1e-9, "maxiter": 5000, "maxfun": 50000}) if tight else (1.0, {})
    found = minimize(lambda p: scale * objective(p, *data), start, method="L-BFGS-B", bounds=BOUNDS, options=options)
    found.fun /= scale
    return found


def refined(start: np.ndarray, *data: np.ndarray) -> float:
    """The objective where scipy ends with analytic gradients and tight tolerances, begun again until nothing is gained.
    Logarithms are centred: far from the origin coefficients and exponents are nearly collinear."""
    log_x, log_loss = data[:2]
    centre = log_x.mean(axis=0)
    p = np.array([start[0] - start[3] * centre[0], start[1] - start[4] * centre[1], *start[2:]])
    best, options = np.inf, {"ftol": 1e-16, "gtol": 1e-13, "maxiter": 5000, "maxfun": 20000, "maxcor": 30}
    for _ in range(30):
        kind = {"jac": True, "method": "L-BFGS-B", "bounds": BOUNDS, "options": options}
        found = minimize(with_gradient, p, args=(log_x - centre, log_loss, *data[2:]), **kind)
        if found.fun >= best * (1 - 1e-12):
            break
        best, p = found.fun, found.x
    return best / 1e3


def as_plain(fit: PowerLaws) -> np.ndarray:
    """Our parameters as scipy's: a, b, e, alpha, beta."""
    return np.array([*np.log(fit.coefficients), np.log(fit.limit), *fit.exponents])


def seconds(work: Callable[[], object]) -> tuple[float, object]:
    """CPU seconds, and what was returned."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def check(what: str, ours: float, refined_plain: float, tolerance: float) -> None:
    """raises   RuntimeError unless ours is the optimum"""
    if not -tolerance <= ours / refined_plain - 1 <= tolerance:
        raise RuntimeError(f"{what}: our objective is {ours!r}, the plain way's, refined, {refined_plain!r}")


def measure_fit(x: np.ndarray, loss: np.ndarray, starts: list, turns: int) -> tuple[dict, PowerLaws]:
    data = (np.log(x), np.log(loss))
    fit = fit_power_laws(x, loss)
    plain_s, results = seconds(lambda: [plain(np.array(start, float), *data) for start in starts])
    best = min(results, key=lambda one: one.fun)
    check("fit", fit.cost, min(refined(best.x, *data), best.fun), 1e-6)
    took = [seconds(lambda: fit_power_laws(x, loss))[0] for _ in range(turns)]
    return {
        "starts": len(starts),
        "plain_s": plain_s,
        "ours_s": statistics.median(took),
        "ratio": plain_s / statistics.median(took),
        "plain_above": float(best.fun / fit.cost - 1),
    }, fit


def measure_bootstrap(fit: PowerLaws, x: np.ndarray, resamples: int, checked: int, turns: int) -> dict:
    log_x, start = np.log(x), as_plain(fit)
    ours = fit.objective(x)
    log_loss = (ours.predict(fit.theta[None]) - fit.residuals)[0]
    weights = resampled_points(len(x), resamples)
    drawn = draw(fit, x, resamples)
    costs = ours.cost(ours.predict(drawn) - log_loss, weights)
    took = statistics.median(seconds(lambda: draw(fit, x, resamples))[0] for _ in range(turns))
    found = {"resamples": resamples, "checked": checked, "ours_s": took}
    for name, tight in (("plain", False), ("tight", True)):
        plain_s, results = seconds(
            lambda tight=tight: [plain(start, log_x, log_loss, one, tight=tight) for one in weights]
        )
        for i, result in enumerate(results[:checked]):
            check(f"resample {i}", costs[i], min(refined(result.x, log_x, log_loss, weights[i]), result.fun), 1e-4)
        above = float(np.median([one.fun for one in results] / costs - 1))
        found[name] = {"plain_s": plain_s, "ours_s": took, "ratio": plain_s / took, "plain_above": above}
    return found


def table(results: list[dict]) -> str:
    """Markdown."""
    lines = ["| points | noise | task | plain, CPU s | ours, CPU s | times faster | plain ends above the optimum by |"]
    lines.append("| ---: | ---: | --- |" + " ---: |" * 4)
    for one in results:
        drawn = one["bootstrap"]
        rows = {
            f"fit, {one['fit']['starts']:,} starts": one["fit"],
            f"bootstrap, {drawn['resamples']:,} resamples": drawn["plain"],
            "the same, plain way with tight tolerances": drawn["tight"],
        }
        for name, row in rows.items():
            cells = f"{row['plain_s']:.3g} | {row['ours_s']:.2g} | {row['ratio']:,.0f} | {row['plain_above']:.2g}"
            lines.append(f"| {one['points']} | {one['noise']:.1%} | {name} | {cells} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few starts and resamples, one turn")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    problems, starts, turns = PROBLEMS, STARTS, args.turns
    resamples, checked = RESAMPLES, CHECKED
    if args.quick:
        problems, starts, turns, resamples, checked = ((6, 4, 0.005, 1),), STARTS[37::150], 1, 60, 5
    results = []
    for sizes, budgets, noise, seed in problems:
        x, loss = points(sizes, budgets, noise, seed)
        fitted, fit = measure_fit(x, loss, starts, turns)
        drawn = measure_bootstrap(fit, x, resamples, checked, turns)
        results.append({"points": len(x), "noise": noise, "fit": fitted, "bootstrap": drawn})
        print(f"{len(x)} points: {results[-1]}", file=sys.stderr, flush=True)
    print(table(results))
    if args.json:
        about = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "when": time.time()}
        args.json.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
