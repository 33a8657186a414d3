"""Robust fits of L(x) = E + sum_k A_k x_k^-a_k, and which of the parameters the data identify.

One variable: a power law with a floor, as L(C) or L(D). Two: Chinchilla's L(N, D) (Hoffmann et al. 2022,
approach 3). The loss is Huber's (delta 1e-3) of log predicted - log observed. All starts, and all bootstrap
resamples, descend together with analytic derivatives (fvlm.analysis.fits.descent): a library optimizer at its default
tolerance stops well short of the optimum on such data, and takes tens of times as long.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri, stdtrit

from fvlm.analysis.fits.descent import EXPONENTS, Objective, descend, starts

DELTA = 1e-3  # of log loss: about 0.1 %
SQUARES = 1e6  # a delta that makes Huber's loss least squares
COLLINEAR = 0.9995  # correlation of log N and log D above which they are one variable
AT_ONCE = 24_000  # points of the resamples that are fitted together: their arrays stay in the processor's cache
SOME = 2000  # points: a fit of more begins with so many
WIDEST = 1.0  # an interval wider than this many times the value says nothing useful about an exponent
RISE = 0.01  # of the cost, times n - p: fits whose cost is higher by no more are equally good
FEWEST = {2: 12, 3: 8, 4: 10, 5: 12}  # points that are drawn themselves, by the number of parameters
MOST_CORRELATED = 0.97  # neighbouring residuals
LEAST = 1e-3  # weight of a point that a draw leaves out
POINTS, RESIDUALS, BLOCKS = "points", "residuals", "residuals in moving blocks"  # what a bootstrap draws
FLAT = 0.1  # part of an exponent's interval that equally good exponents may cover ...
ROUNDING = 1e-3  # ... or of the exponent itself, where points without noise leave no interval


@dataclass(frozen=True)
class PowerLaws:
    """A fit; `theta` (p,) = [E (if floor), k terms in nats at the centre of the data, k exponents]."""

    theta: np.ndarray
    centre: np.ndarray  # (k,) geometric mean of x
    floor: bool
    residuals: np.ndarray  # (n,) predicted - observed, of log loss (if log) or of the loss in nats
    cost: float  # the sum of Huber's loss over the residuals
    delta: float = DELTA
    log: bool = True

    @property
    def variables(self) -> int:
        return len(self.centre)

    @property
    def exponents(self) -> np.ndarray:
        return self.theta[-self.variables :]

    @property
    def terms(self) -> np.ndarray:
        return self.theta[int(self.floor) : -self.variables]

    @property
    def limit(self) -> float:
        """E, nats."""
        return float(self.theta[0]) if self.floor else 0.0

    @property
    def coefficients(self) -> np.ndarray:
        """A_k in the units of x: nats times x^a."""
        return self.terms * self.centre**self.exponents

    @property
    def rmse(self) -> float:
        """Of the residuals; of log loss it is about the relative error."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """x (n, k) or (n,) -> loss (n,) in nats."""
        x = np.asarray(x, float).reshape(-1, self.variables)
        return self.limit + (self.terms * (x / self.centre) ** -self.exponents).sum(axis=1)

    def objective(self, x: np.ndarray) -> Objective:
        x = np.asarray(x, float).reshape(-1, self.variables)
        return Objective(np.log(x / self.centre), self.floor, self.delta, self.log)


def fit_power_laws(
    x: np.ndarray, loss: np.ndarray, floor: bool = True, delta: float = DELTA, log: bool = True
) -> PowerLaws:
    """Return the best fit of all starts: x (n, k) positive, loss (n,) positive.

    delta   of Huber's loss; a large one is least squares
    log     compare log loss (Hoffmann et al. 2022, eq. 3); otherwise the loss itself, in nats

    raises  ValueError for values that are not positive and finite
    """
    loss = np.asarray(loss, float)
    x = np.asarray(x, float).reshape(len(loss), -1)
    if not (np.isfinite(x).all() and np.isfinite(loss).all() and (x > 0).all() and (loss > 0).all()):
        raise ValueError("a power law needs positive, finite values")
    centre = np.exp(np.log(x).mean(axis=0))
    objective = Objective(np.log(x / centre), floor, delta, log)
    target = objective.target(loss)
    begin = starts(objective, loss)
    if len(loss) > SOME:  # all starts on some of the points, the best of them on all
        some = np.random.default_rng(0).choice(len(loss), SOME, replace=False)
        begin, cost = descend(replace(objective, z=objective.z[some]), begin, target[some])
        begin = begin[np.argsort(cost)[:3]]
    theta, cost = descend(objective, begin, target)
    best = int(np.argmin(cost))
    residuals = objective.predict(theta[best : best + 1])[0] - target
    return PowerLaws(theta[best], centre, floor, residuals, float(cost[best]), delta, log)


def lag_one(residuals: np.ndarray) -> float:
    """Return the correlation of neighbouring residuals, 0 to 0.97."""
    own = residuals - residuals.mean()
    power = (own**2).sum()
    return float(np.clip((own[1:] * own[:-1]).sum() / power, 0, MOST_CORRELATED)) if power > 0 else 0.0


def block_length(residuals: np.ndarray) -> int:
    """Return the rows of a block for residuals in the order of one curve: Andrews' (1991) rule for the lag-1
    correlation; 1 where that is not positive, at most a quarter of the rows."""
    n, rho = len(residuals), lag_one(residuals)
    length = 1.1447 * (4 * rho**2 / ((1 - rho) ** 2 * (1 + rho) ** 2) * n) ** (1 / 3)
    return int(np.clip(np.ceil(length), 1, max(1, n // 4)))


def block_scale(residuals: np.ndarray, parameters: int, block: int) -> float:
    """Return by how much the mean of correlated errors spreads more than that of drawn blocks of their residuals.

    The error of one evaluation hangs on those before, as in an autoregressive process: its long-run variance is
    (1 + rho) / (1 - rho). Blocks cut the correlations beyond their length, and at their joints. A fit of p parameters
    also takes some of the correlation away: about (p + (p + 2) rho) / n, as of a mean or a line (Kendall 1954).
    """
    n, rho = len(residuals), lag_one(residuals)
    if block == 1 or rho == 0:
        return 1.0
    lags = np.arange(1, block)
    in_blocks = 1 + 2 * ((1 - lags / block) * rho**lags).sum()
    rho = min(rho + (parameters + (parameters + 2) * rho) / n, MOST_CORRELATED)
    return float(np.sqrt((1 + rho) / (1 - rho) / in_blocks))


def resampling(points: int, parameters: int, block: int = 1) -> str:
    """Return what the bootstrap of a fit draws: POINTS, or RESIDUALS where there are too few points, or BLOCKS.

    Too few: where intervals from residuals hold the truth more often (benchmarks/coverage.py).
    """
    if block > 1:
        return BLOCKS
    return POINTS if points >= FEWEST[parameters] else RESIDUALS


def bootstrap(fit: PowerLaws, x: np.ndarray, draws: int = 400, block: int = 1, seed: int = 0) -> np.ndarray:
    """Return theta (draws, p) of fits to resamples, as `resampling` names them.

    block   rows that stay together: 1 for independent runs; more for the autocorrelated points of one curve
    """
    rng, parts, objective = np.random.default_rng(seed), [], fit.objective(x)
    n, observed = len(fit.residuals), objective.predict(fit.theta[None]) - fit.residuals
    of_points = resampling(n, len(fit.theta), block) == POINTS
    most = max(1, AT_ONCE // n)
    for first in range(0, draws, most):
        count = min(most, draws - first)
        target = observed if of_points else resampled_residuals(fit, x, count, block, rng)
        weights = resampled_points(n, count, rng) if of_points else None
        theta = np.repeat(fit.theta[None], count, axis=0)
        parts.append(descend(objective, theta, target, tolerance=1e-9, weights=weights)[0])
    return np.concatenate(parts)


def resampled_points(points: int, draws: int, seed: int | np.random.Generator = 0) -> np.ndarray:
    """Return how often each draw has each point, (draws, n), for errors that may differ from point to point.

    A point that a draw leaves out keeps the weight LEAST: a draw of fewer points than parameters has an optimum too.
    """
    counts = np.random.default_rng(seed).multinomial(points, np.full(points, 1 / points), size=draws)
    return np.maximum(counts, LEAST)


def resampled_residuals(
    fit: PowerLaws, x: np.ndarray, draws: int, block: int = 1, seed: int | np.random.Generator = 0
) -> np.ndarray:
    """Return the losses that each draw is fitted to, (draws, n): log loss (if the fit is of it) or the loss in nats.
    All points have the same error.

    Residuals are scaled by sqrt(n / (n - p)) and by t / z at 95 %, so that few points, or few blocks, give wide
    intervals: t has n - p degrees of freedom, but no more than the number of blocks less one. Blocks: also by
    block_scale.
    """
    n, p = len(fit.residuals), len(fit.theta)
    degrees = min(n - p, max(1.0, n / block - 1))
    scale = np.sqrt(n / (n - p)) * stdtrit(degrees, 0.975) / ndtri(0.975) * block_scale(fit.residuals, p, block)
    rng = np.random.default_rng(seed)
    first = rng.integers(0, n - block + 1, size=(draws, -(-n // block)))
    rows = (first[:, :, None] + np.arange(block)).reshape(draws, -1)[:, :n]
    return fit.objective(x).predict(fit.theta[None]) - scale * fit.residuals[rows]


@dataclass(frozen=True)
class Estimate:
    """One parameter: its value with a 95 % interval (NaN without draws), or the reason why it is not identified."""

    name: str
    value: float
    low: float
    high: float
    reason: str = ""  # empty: identified


def estimates(
    x: np.ndarray,
    loss: np.ndarray,
    names: tuple[str, ...],
    floor: bool = True,
    block: int | None = 1,
    draws: int = 400,
    seed: int = 0,
    delta: float = DELTA,
    log: bool = True,
    product: float | None = None,
) -> tuple[PowerLaws | None, list[Estimate]]:
    """Return the fit (None with too few points), and an estimate of each parameter: E, then per variable its
    coefficient and its exponent, then derived exponents.

    names   of the variables, such as ("N", "D"); each needs three values to be identified
    block   rows of the bootstrap that stay together; None: block_length of the residuals
    draws   of the bootstrap; 0: no intervals, and none that is too wide
    delta, log   of the fit: fit_power_laws
    product   of N and D, at which N_opt and D_opt are wanted too
    """
    x = np.asarray(x, float).reshape(len(loss), -1)
    n, p = len(loss), 2 * len(names) + int(floor)
    if n <= p:
        reason = f"{n} points cannot carry {p} parameters and an error"
        known = parameters(np.empty((0, p)), np.ones(len(names)), names, product)
        return None, [_estimate(name, np.nan, np.empty(0), reason) for name in known]
    fit = fit_power_laws(x, loss, floor, delta, log)
    block = block_length(fit.residuals) if block is None else min(block, n)
    drawn = bootstrap(fit, x, draws, block, seed) if draws else np.empty((0, p))
    of_terms = {name: _exponent_reason(fit, x, drawn, k, name) for k, name in enumerate(names)}
    reasons = {f"{part}_{name}": reason for name, reason in of_terms.items() for part in ("A", "exponent")}
    some = next(filter(None, of_terms.values()), "")
    at_zero = floor and (np.quantile(drawn[:, 0], 0.025) if draws else fit.limit) <= 1e-6
    reasons["E"] = some or ("the interval of the floor reaches zero" if at_zero else "")
    own, of_draws = (parameters(theta, fit.centre, names, product) for theta in (fit.theta[None], drawn))
    return fit, [_estimate(name, own[name][0], of_draws[name], reasons.get(name, some)) for name in own]


def parameters(
    theta: np.ndarray, centre: np.ndarray, names: tuple[str, ...], product: float | np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return all parameters (R,) of theta (R, p) as in PowerLaws: E, per variable its coefficient and its exponent, and
    of N and D the exponents in C of N_opt and D_opt; with the `product` of N and D also both optima."""
    k = len(names)
    exponents, terms = theta[:, -k:], theta[:, -2 * k : -k]
    found = {"E": theta[:, 0]} if theta.shape[1] > 2 * k else {}
    for i, name in enumerate(names):
        found[f"A_{name}"] = terms[:, i] * centre[i] ** exponents[:, i]
        found[f"exponent_{name}"] = exponents[:, i]
    if names == ("N", "D"):  # at fixed compute C ~ N D the loss is lowest at N ~ C^(b / (a + b))
        found["N_opt_exponent"] = exponents[:, 1] / exponents.sum(axis=1)
        found["D_opt_exponent"] = 1 - found["N_opt_exponent"]
    if product is not None:  # a A N^-a = b B D^-b (Hoffmann et al. 2022, eq. 4)
        (first, second), (a, b) = terms.T, exponents.T
        ratio = np.log(np.maximum(a * first, 1e-300)) - np.log(np.maximum(b * second, 1e-300))
        log_n = np.log(centre[0]) + (ratio + b * np.log(product / centre.prod())) / (a + b)
        found["N_opt"] = np.exp(np.clip(log_n, -300, 300))  # a draw whose term vanishes has no optimum
        found["D_opt"] = product / found["N_opt"]
    return found


def _exponent_reason(fit: PowerLaws, x: np.ndarray, draws: np.ndarray, k: int, name: str) -> str:
    """Return why the exponent of variable k is not identified; empty if it is."""
    values = _distinct(x[:, k])
    if values < 3:
        return f"{values} value{'s' * (values != 1)} of {name}; an exponent needs three"
    others = [np.log(x[:, i]) for i in range(x.shape[1]) if i != k and _distinct(x[:, i]) > 1]
    if any(np.corrcoef(np.log(x[:, k]), other)[0, 1] > COLLINEAR for other in others):
        return f"{name} varies only together with the other variable; their terms cannot be told apart"
    exponent = fit.exponents[k]
    term = fit.terms[k] * (x[:, k] / fit.centre[k]) ** -exponent
    if np.ptp(term) < max(_noise(fit, x), 1e-4):
        return f"the {name} term vanishes: over these data it changes the loss by less than the fit's error"
    if exponent <= EXPONENTS[0] * 1.001 or exponent >= EXPONENTS[1] * 0.999:
        return f"the exponent of {name} ran into its bound {exponent:.2g}"
    if len(draws):
        low, high = np.quantile(draws[:, draws.shape[1] - fit.variables + k], [0.025, 0.975])
        if high - low > WIDEST * exponent:
            return f"the interval of the exponent of {name}, {low:.2g} to {high:.2g}, is too wide"
        first, last = _equally_good(fit, x, k, high - low)
        if last - first > max(FLAT * (high - low), ROUNDING * exponent):
            return (
                f"exponents of {name} from {first:.3g} to {last:.3g} fit alike, a good part of the interval "
                f"({low:.3g} to {high:.3g}): the loss of the fit is flat there and has no one optimum"
            )
    return ""


def _equally_good(fit: PowerLaws, x: np.ndarray, k: int, width: float) -> tuple[float, float]:
    """Return the range of exponents of variable k for which the cost, all else fitted again, hardly rises.

    A sum of absolute errors can be flat at its lowest, and Huber's loss nearly is one where errors are much larger than
    delta. Of four points evenly spaced in log x, two above a line and two below, any line between the two pairs fits
    equally well. "Hardly" is RISE / (n - p): if the cost were a parabola, a tenth of a standard error to either side,
    2 to 6 % of the interval (`width`), as measured on smooth fits.
    """
    n, p = len(fit.residuals), len(fit.theta)
    place, objective = p - fit.variables + k, fit.objective(x)
    values = np.clip(fit.theta[place] + width * np.linspace(-0.25, 0.25, 21), *EXPONENTS)
    theta = np.repeat(fit.theta[None], len(values), axis=0)
    theta[:, place] = values
    target = objective.predict(fit.theta[None]) - fit.residuals
    cost = descend(objective, theta, target, tolerance=1e-9, held=place)[1]
    good = values[cost <= fit.cost * (1 + RISE / (n - p))]
    return (good.min(), good.max()) if len(good) else (fit.theta[place],) * 2


def _distinct(values: np.ndarray, apart: float = 0.01) -> int:
    """Return the number of values that differ from each other by 1 % or more."""
    count, last = 0, -np.inf
    for value in np.log(np.unique(values)):
        if value - last >= apart:
            count, last = count + 1, value
    return count


def _noise(fit: PowerLaws, x: np.ndarray) -> float:
    """Return how large a term may come out by noise alone, in nats from end to end.

    A slope's standard error lets a line over n points rise by about 3.5 s / sqrt(n), and it may be more than two of
    them; s is the residuals' spread, from the mean absolute one, which outliers move little.
    """
    n, p = len(fit.residuals), len(fit.theta)
    spread = np.sqrt(np.pi / 2 * n / (n - p)) * np.abs(fit.residuals).mean()
    return spread * 8 / np.sqrt(n) * (float(fit.predict(x).mean()) if fit.log else 1.0)


def _estimate(name: str, value: float, draws: np.ndarray, reason: str) -> Estimate:
    if reason:
        return Estimate(name, np.nan, np.nan, np.nan, reason)
    low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
    return Estimate(name, float(value), float(low), float(high))


def as_fields(
    fit: PowerLaws | None,
    judged: list[Estimate],
    names: dict[str, str],
    refused: dict[str, str],
    block: int | None,
    draws: int,
) -> dict:
    """Return the fields of a fit that commands write; a parameter has no value or interval where it has a reason.

    names    of an estimate -> its name in the JSON
    refused  further reasons, by the name in the JSON
    block, draws   of the bootstrap, as in `estimates`
    """
    reasons = {names[one.name]: one.reason for one in judged if one.reason} | refused
    known = {names[one.name]: one for one in judged if names[one.name] not in reasons}
    intervals = {name: [known[name].low, known[name].high] if name in known else None for name in names.values()}
    rows = None if fit is None else block or block_length(fit.residuals)
    return {
        **{name: known[name].value if name in known else None for name in names.values()},
        "objective": None if fit is None else fit.cost,
        "reasons": reasons,
        "ci": intervals if draws else None,
        "resampled": None if fit is None or not draws else resampling(len(fit.residuals), len(fit.theta), rows),
        "block": rows,
    }
