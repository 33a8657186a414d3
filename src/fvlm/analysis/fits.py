"""Robust fits of L(x) = E + sum_k A_k x_k^-a_k, and what the data can and cannot say about each parameter.

One variable: a power law with a floor, as L(C) or L(D). Two: Chinchilla's L(N, D) (Hoffmann et al. 2022,
approach 3). The loss is Huber's (delta 1e-3) of log predicted - log observed. Starts come from variable
projection: on a grid of exponents the rest is linear. All starts, and all bootstrap resamples, descend
together in one batched Levenberg-Marquardt with analytic gradients; a library optimizer at its default
tolerance stops well short of the optimum on such data.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from scipy.special import ndtri, stdtrit

DELTA = 1e-3  # of log loss: about 0.1 %
EXPONENTS = (0.01, 3.0)  # bounds
STARTS = 6
MOST_STEPS = 300
WIDEST = 1.0  # an interval wider than this many times the value says nothing useful about an exponent


@dataclass(frozen=True)
class PowerLaws:
    """A fit; `theta` (p,) = [E (if floor), k terms in nats at the centre of the data, k exponents]."""

    theta: np.ndarray
    centre: np.ndarray  # (k,) geometric mean of x
    floor: bool
    residuals: np.ndarray  # (n,) log predicted - log observed

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
        """Of log loss: about the relative error."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """x (n, k) or (n,) -> loss (n,) in nats."""
        x = np.asarray(x, float).reshape(-1, self.variables)
        return self.limit + (self.terms * (x / self.centre) ** -self.exponents).sum(axis=1)


def fit_power_laws(x: np.ndarray, loss: np.ndarray, floor: bool = True, delta: float = DELTA) -> PowerLaws:
    """x (n, k) positive, loss (n,) positive -> the best fit of all starts.

    delta   of Huber's loss, in log loss; a large one is least squares

    raises  ValueError for values that are not positive and finite
    """
    loss = np.asarray(loss, float)
    x = np.asarray(x, float).reshape(len(loss), -1)
    if not (np.isfinite(x).all() and np.isfinite(loss).all() and (x > 0).all() and (loss > 0).all()):
        raise ValueError("a power law needs positive, finite values")
    centre = np.exp(np.log(x).mean(axis=0))
    z = np.log(x / centre)
    starts = _starts(z, loss, floor)
    theta, cost = _descend(starts, z, np.log(loss)[None], floor, delta)
    best = theta[np.argmin(cost)]
    return PowerLaws(best, centre, floor, np.log(_model(best[None], z, floor)[0]) - np.log(loss))


def bootstrap(fit: PowerLaws, x: np.ndarray, draws: int = 400, block: int = 1, seed: int = 0) -> np.ndarray:
    """Moving-block bootstrap of the residuals -> theta (draws, p).

    block   rows that stay together: 1 for independent runs; more for the autocorrelated points of one curve
    Residuals are scaled by sqrt(n / (n - p)) and by t / z at 95 %, so that few points give honestly wide
    intervals.
    """
    z = np.log(np.asarray(x, float).reshape(-1, fit.variables) / fit.centre)
    n, p = len(z), len(fit.theta)
    scale = np.sqrt(n / (n - p)) * stdtrit(n - p, 0.975) / ndtri(0.975)
    rng = np.random.default_rng(seed)
    first = rng.integers(0, n - block + 1, size=(draws, -(-n // block)))
    rows = (first[:, :, None] + np.arange(block)).reshape(draws, -1)[:, :n]
    log_loss = np.log(_model(fit.theta[None], z, fit.floor)) + scale * fit.residuals[rows]
    return _descend(np.repeat(fit.theta[None], draws, axis=0), z, log_loss, fit.floor, DELTA, tolerance=1e-9)[0]


def _starts(z: np.ndarray, loss: np.ndarray, floor: bool) -> np.ndarray:
    """The best points of a grid over the exponents, the linear part solved for nonnegative values:
    (STARTS, p)."""
    k = z.shape[1]
    grid = np.geomspace(0.03, 2.0, 40 if k == 1 else 14)
    found = []
    for exponents in itertools.product(grid, repeat=k):
        columns = np.exp(-z * np.array(exponents))
        design = np.column_stack([np.ones(len(z)), columns]) if floor else columns
        solution, residual = nnls(design / loss[:, None], np.ones(len(z)))  # relative errors
        found.append((residual, (*np.maximum(solution, 1e-4), *exponents)))
    return np.array([start for _, start in sorted(found)[:STARTS]])


def _parts(theta: np.ndarray, z: np.ndarray, floor: bool) -> tuple[np.ndarray, np.ndarray]:
    """theta (R, p) -> terms and powers, each (R, n, k)."""
    k = z.shape[1]
    powers = np.exp(-theta[:, None, -k:] * z)
    return theta[:, None, int(floor) : -k] * powers, powers


def _model(theta: np.ndarray, z: np.ndarray, floor: bool) -> np.ndarray:
    limit = theta[:, :1] if floor else 0.0
    return limit + _parts(theta, z, floor)[0].sum(axis=2)


def _log_model(theta: np.ndarray, z: np.ndarray, floor: bool) -> np.ndarray:
    return np.log(np.maximum(_model(theta, z, floor), 1e-300))


def _cost(residuals: np.ndarray, delta: float) -> np.ndarray:
    """Huber's loss, (R, n) -> (R,)."""
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)).sum(axis=1)


def _descend(
    theta: np.ndarray,
    z: np.ndarray,
    log_loss: np.ndarray,
    floor: bool,
    delta: float,
    tolerance: float = 1e-13,
) -> tuple[np.ndarray, np.ndarray]:
    """Batched Levenberg-Marquardt within bounds: theta (R, p), log_loss (R or 1, n) -> theta, cost (R,).

    A row leaves the batch when a step gains less than `tolerance` of its cost, or no step gains anything.
    """
    k = z.shape[1]
    bounds = (
        np.array([0.0] * (int(floor) + k) + [EXPONENTS[0]] * k),
        np.array([np.inf] * (int(floor) + k) + [EXPONENTS[1]] * k),
    )
    theta = np.clip(theta, *bounds)
    log_loss = np.broadcast_to(log_loss, (len(theta), len(z)))
    damping = np.full(len(theta), 1e-3)
    residuals = _log_model(theta, z, floor) - log_loss
    cost = _cost(residuals, delta)
    active = np.arange(len(theta))
    for _ in range(MOST_STEPS):
        trial = np.clip(
            theta[active] - _step(theta[active], z, residuals[active], damping[active], floor, delta, bounds),
            *bounds,
        )
        trial_residuals = _log_model(trial, z, floor) - log_loss[active]
        gain = cost[active] - _cost(trial_residuals, delta)
        better = gain > 0
        moved = active[better]
        theta[moved], residuals[moved] = trial[better], trial_residuals[better]
        settled = np.where(better, gain <= tolerance * cost[active], damping[active] > 1e6)
        cost[moved] -= gain[better]
        damping[active] = np.clip(np.where(better, damping[active] / 5, damping[active] * 5), 1e-12, 1e9)
        active = active[~settled]
        if not len(active):
            break
    return theta, cost


def _step(theta, z, residuals, damping, floor, delta, bounds) -> np.ndarray:
    """One damped Gauss-Newton step (R, p); parameters pressed against a bound stay there."""
    terms, powers = _parts(theta, z, floor)
    predicted = (theta[:, :1] if floor else 0.0) + terms.sum(axis=2)
    columns = [np.ones((*predicted.shape, 1))] if floor else []
    jacobian = np.concatenate([*columns, powers, -terms * z], axis=2) / np.maximum(predicted, 1e-300)[..., None]
    weight = 1 / np.maximum(1, np.abs(residuals) / delta)  # of Huber's loss, as reweighted least squares
    gradient = np.einsum("rnp,rn->rp", jacobian, weight * residuals)
    hessian = np.einsum("rnp,rn,rnq->rpq", jacobian, weight, jacobian)
    pressed = ((theta <= bounds[0]) & (gradient > 0)) | ((theta >= bounds[1]) & (gradient < 0))
    gradient[pressed] = 0
    hessian *= ~(pressed[:, :, None] | pressed[:, None, :])
    diagonal = np.einsum("rpp->rp", hessian)
    hessian += np.eye(theta.shape[1]) * (damping[:, None] * diagonal + pressed + 1e-14)[:, None, :]
    return np.linalg.solve(hessian, gradient[..., None])[..., 0]


@dataclass(frozen=True)
class Estimate:
    """One parameter: value with its 95 % interval, or the reason why there is none (`reason` empty:
    identified)."""

    name: str
    value: float
    low: float
    high: float
    reason: str = ""


def estimates(
    x: np.ndarray, loss: np.ndarray, names: tuple[str, ...], floor: bool = True, block: int = 1
) -> tuple[PowerLaws | None, list[Estimate]]:
    """Fit, and judge each parameter: E, then per variable its coefficient and its exponent, then derived
    exponents.

    names   of the variables, such as ("N", "D"); they must vary enough (three values each) to be identified
    returns the fit (None if there are too few points for one), and the estimates in order
    """
    x = np.asarray(x, float).reshape(len(loss), -1)
    n, p = len(loss), 2 * len(names) + int(floor)
    if n <= p:
        reason = f"{n} points cannot carry {p} parameters and an error"
        return None, [Estimate(name, np.nan, np.nan, np.nan, reason) for name in parameter_names(names, floor)]
    fit = fit_power_laws(x, loss, floor)
    draws = bootstrap(fit, x, block=block)
    reasons = [_exponent_reason(fit, x, draws, k, name) for k, name in enumerate(names)]
    return fit, _judged(fit, draws, names, reasons)


def parameter_names(names: tuple[str, ...], floor: bool) -> list[str]:
    flat = (["E"] if floor else []) + [word for name in names for word in (f"A_{name}", f"exponent_{name}")]
    return flat + (["N_opt_exponent", "D_opt_exponent"] if names == ("N", "D") else [])


def _exponent_reason(fit: PowerLaws, x: np.ndarray, draws: np.ndarray, k: int, name: str) -> str:
    """Why the exponent of variable k cannot be had; empty if it can."""
    values = np.unique(np.round(np.log(x[:, k]), 6))
    if len(values) < 3:
        return f"{len(values)} value{'s' * (len(values) != 1)} of {name}; an exponent needs three"
    exponent = fit.exponents[k]
    term = fit.terms[k] * (x[:, k] / fit.centre[k]) ** -exponent
    if term.max() - term.min() < max(fit.rmse * float(fit.predict(x).mean()), 1e-4):
        return f"the {name} term vanishes: over these data it changes the loss by less than the fit's error"
    if exponent <= EXPONENTS[0] * 1.001 or exponent >= EXPONENTS[1] * 0.999:
        return f"the exponent of {name} ran into its bound {exponent:.2g}"
    low, high = np.quantile(draws[:, draws.shape[1] - fit.variables + k], [0.025, 0.975])
    if high - low > WIDEST * exponent:
        return f"the interval of the exponent of {name}, {low:.2g} to {high:.2g}, is too wide"
    return ""


def _judged(fit: PowerLaws, draws: np.ndarray, names: tuple[str, ...], reasons: list[str]) -> list[Estimate]:
    k = fit.variables
    exponents = draws[:, -k:]
    result = []
    if fit.floor:
        reason = next((reason for reason in reasons if reason), "")
        low = np.quantile(draws[:, 0], 0.025)
        if not reason and low <= 1e-6:
            reason = "the interval of the floor reaches zero"
        result.append(_estimate("E", fit.limit, draws[:, 0], reason))
    coefficients = draws[:, int(fit.floor) : -k] * fit.centre**exponents
    for i, name in enumerate(names):
        result.append(_estimate(f"A_{name}", fit.coefficients[i], coefficients[:, i], reasons[i]))
        result.append(_estimate(f"exponent_{name}", fit.exponents[i], exponents[:, i], reasons[i]))
    if names == ("N", "D"):  # at fixed compute C ~ N D the loss is lowest at N ~ C^(b / (a + b))
        reason = next((reason for reason in reasons if reason), "")
        share, own = exponents[:, 1] / exponents.sum(axis=1), fit.exponents[1] / fit.exponents.sum()
        result.append(_estimate("N_opt_exponent", own, share, reason))
        result.append(_estimate("D_opt_exponent", 1 - own, 1 - share, reason))
    return result


def _estimate(name: str, value: float, draws: np.ndarray, reason: str) -> Estimate:
    if reason:
        return Estimate(name, np.nan, np.nan, np.nan, reason)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(name, float(value), float(low), float(high))
