"""The numerical part of the fits: sums of power laws under Huber's loss, many problems at once.

Letters: R problems (starts, or bootstrap resamples), n points, k variables, p parameters of each problem.
theta (R, p) = [E (if floor), k terms in nats at z = 0, k exponents]; the model is E + sum_k A_k exp(-a_k z_k), where
z (n, k) is log x less its mean, so that the units of x do not matter.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

EXPONENTS = (0.01, 3.0)  # bounds
STARTS = 8
MOST_STEPS = 400
TOGETHER = 24_000  # points of the problems that descend together: their arrays stay in the processor's cache
FEWEST = 8  # problems at once, however many their points
ROUNDS = 4  # of the linearised problem; more gain little
LEAST = 1e-300
NEAR = 1e-2  # a step that gains less of the cost has come near the optimum, where the exact Hessian is better


@dataclass(frozen=True)
class Objective:
    """What is minimised: Huber's loss of predicted - observed, of log loss or of the loss itself in nats."""

    z: np.ndarray  # (n, k)
    floor: bool
    delta: float
    log: bool = True
    held: tuple[bool, ...] = ()  # (p,) parameters that stay where a descent begins; none if empty

    @cached_property
    def minus_z(self) -> np.ndarray:
        """(k, n), points side by side in memory; so is then all that is computed from it, which halves the time."""
        return np.ascontiguousarray(-self.z.T)

    @property
    def parameters(self) -> int:
        return int(self.floor) + 2 * self.z.shape[1]

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        k = self.z.shape[1]
        return tuple(
            np.array([edge] * (self.parameters - k) + [end] * k)
            for edge, end in zip((0.0, np.inf), EXPONENTS, strict=True)
        )

    def target(self, loss: np.ndarray) -> np.ndarray:
        """What predictions are held against."""
        return np.log(np.maximum(loss, LEAST)) if self.log else loss

    def evaluate(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """theta (R, p) -> the powers exp(-a_k z_k) (R, k, n), and the predicted loss (R, n)."""
        k, f = self.z.shape[1], int(self.floor)
        powers = np.exp(theta[:, f + k :, None] * self.minus_z)
        loss = (theta[:, None, f : f + k] @ powers)[:, 0]
        return powers, np.maximum(loss + theta[:, :1] if f else loss, LEAST)

    def predict(self, theta: np.ndarray) -> np.ndarray:
        """theta (R, p) -> (R, n), comparable with `target`."""
        return self.target(self.evaluate(theta)[1])

    def cost(self, residuals: np.ndarray) -> np.ndarray:
        """(R, n) -> (R,)."""
        size = np.abs(residuals)
        inner = np.minimum(size, self.delta)
        return (inner * (size - 0.5 * inner)).sum(axis=1)


def starts(objective: Objective, loss: np.ndarray) -> np.ndarray:
    """Where to begin: the lowest points of a grid over the exponents, on which the rest is linear (S, p).

    The linear part is least squares of relative errors with nonnegative solutions, for all grid points at once: of all
    sets of columns the best whose solution is positive.
    """
    n, k = objective.z.shape
    f = int(objective.floor)
    axis = np.geomspace(*EXPONENTS, 60 if k == 1 else 21)
    weight = 1 / loss if objective.log else np.ones(n)
    powers = np.exp(-objective.z[:, :, None] * axis)  # (n, k, grid)
    columns = np.concatenate([np.ones((n, f)), powers.reshape(n, -1)], axis=1) * weight[:, None]
    gram, target = columns.T @ columns, columns.T @ (loss * weight)
    points = np.array(list(itertools.product(range(len(axis)), repeat=k)))
    chosen = points + np.arange(k) * len(axis) + f
    if f:
        chosen = np.column_stack([np.zeros(len(points), int), chosen])
    linear = _nonnegative(gram[chosen[:, :, None], chosen[:, None, :]], target[chosen])
    theta = np.concatenate([np.maximum(linear, 1e-4), axis[points]], axis=1)
    wanted, most = objective.target(loss), max(1, TOGETHER // n)
    parts = (theta[first : first + most] for first in range(0, len(theta), most))
    costs = np.concatenate([objective.cost(objective.predict(part) - wanted) for part in parts])
    return theta[_lowest(costs.reshape((len(axis),) * k))]


def _nonnegative(gram: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Batched least squares without negative solutions: gram (G, c, c), target (G, c) -> (G, c)."""
    c = target.shape[1]
    best, gained = np.zeros_like(target), np.zeros(len(target))
    for kept in itertools.product((False, True), repeat=c):
        if not any(kept):
            continue
        rows = np.flatnonzero(kept)
        part = gram[:, rows[:, None], rows]
        ridge = 1e-12 * np.einsum("gcc->gc", part)[:, :, None] * np.eye(len(rows))
        found = np.linalg.solve(part + ridge, target[:, rows][:, :, None])[:, :, 0]
        gain = (found * target[:, rows]).sum(axis=1)
        better = (found >= 0).all(axis=1) & (gain > gained)
        best[better] = 0
        best[np.ix_(better, rows)] = found[better]
        gained[better] = gain[better]
    return best


def _lowest(costs: np.ndarray) -> np.ndarray:
    """Positions in a flattened grid of costs: those no higher than their neighbours, then the lowest others."""
    around = np.pad(costs, 1, constant_values=np.inf)
    least = np.full(costs.shape, np.inf)
    for shift in itertools.product((0, 1, 2), repeat=costs.ndim):
        if set(shift) != {1}:
            window = tuple(slice(s, s + size) for s, size in zip(shift, costs.shape, strict=True))
            least = np.minimum(least, around[window])
    order = np.lexsort([costs.ravel(), (costs > least).ravel()])
    return order[: max(STARTS, min(2 * STARTS, int((costs <= least).sum())))]


def descend(
    objective: Objective, theta: np.ndarray, target: np.ndarray, tolerance: float = 1e-14
) -> tuple[np.ndarray, np.ndarray]:
    """The minimum next to each start: theta (R or 1, p), target (R or 1, n) or (n,) -> theta (R, p), cost (R,).

    One theta for many targets is where they were drawn from: each begins near its own minimum, see `_linearised`.

    Levenberg-Marquardt within bounds, each row with its own damping. Far from the optimum the Hessian is that of
    reweighted least squares, near it the exact one, which converges quadratically where Huber's loss is almost the sum
    of absolute errors. A row is done when a step gains less than `tolerance` of its cost, or no step gains anything.
    """
    theta, target = np.asarray(theta, float), np.atleast_2d(target)
    many = max(len(theta), len(target))
    target = np.broadcast_to(target, (many, len(objective.z)))
    drawn = len(theta) == 1 < many
    found, costs = np.empty((many, theta.shape[1])), np.empty(many)
    together = int(np.clip(TOGETHER // len(objective.z), FEWEST, 1024))
    for first in range(0, many, together):
        rows = slice(first, first + together)
        begin = _linearised(objective, theta, target[rows]) if drawn else theta[rows]
        found[rows], costs[rows] = _descend_rows(objective, begin, target[rows], tolerance)
    return found, costs


def _linearised(objective: Objective, theta, target) -> np.ndarray:
    """Where to begin from one theta (1, p) for each target (R, n): some rounds of reweighted least squares with the
    derivatives at theta, which all rows share, so that a round costs a tenth of a step. Rows that this does not
    bring nearer begin at theta."""
    powers, loss = objective.evaluate(theta)
    jacobian = _jacobian(objective, theta, powers)[0] / (loss if objective.log else 1.0)  # (p, n)
    p, n = jacobian.shape
    products = (jacobian[:, None] * jacobian).reshape(p * p, n).T
    begun = objective.target(loss) - target
    residuals, moved, delta = begun, np.zeros((len(target), p)), objective.delta
    for _ in range(ROUNDS):
        weight = delta / np.maximum(np.abs(residuals), delta)
        hessian = (weight @ products).reshape(-1, p, p)
        hessian[:, range(p), range(p)] *= 1 + 1e-3
        hessian[:, range(p), range(p)] += 1e-14
        gradient = np.clip(residuals, -delta, delta) @ jacobian.T
        moved -= np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        residuals = begun + moved @ jacobian
    moved = np.clip(theta + moved, *objective.bounds)
    nearer = objective.cost(objective.predict(moved) - target) < objective.cost(begun)
    return np.where(nearer[:, None], moved, theta)


def _descend_rows(objective: Objective, theta, target, tolerance) -> tuple[np.ndarray, np.ndarray]:
    low, high = objective.bounds
    theta = np.clip(theta, low, high)
    powers, loss = objective.evaluate(theta)
    residuals = objective.target(loss) - target
    costs = objective.cost(residuals)
    rows, damping, exact = np.arange(len(theta)), np.full(len(theta), 1e-3), np.zeros(len(theta), bool)
    scale = np.ones(theta.shape)  # of each parameter's damping
    found, lowest = theta.copy(), costs.copy()
    for _ in range(MOST_STEPS):
        step = _step(objective, theta, powers, loss, residuals, damping, exact, scale)
        trial = np.clip(theta - step, low, high)
        tried = [trial, *objective.evaluate(trial)]
        tried.append(objective.target(tried[2]) - target)
        gain = costs - objective.cost(tried[3])
        better = gain > 0
        if better.all():
            theta, powers, loss, residuals = tried
        else:
            for old, new in zip((theta, powers, loss, residuals), tried, strict=True):
                old[better] = new[better]
        settled = np.where(better, exact & (gain <= tolerance * costs), damping > 1e8) | (costs <= 0)
        exact |= better & (gain <= NEAR * costs)
        costs = np.where(better, costs - gain, costs)
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-14, 1e9)
        found[rows], lowest[rows] = theta, costs
        if settled.all():
            break
        if settled.any():
            state = (theta, powers, loss, residuals, target, costs, rows, damping, exact, scale)
            state = (part[~settled] for part in state)
            theta, powers, loss, residuals, target, costs, rows, damping, exact, scale = state
    return found, lowest


def _step(objective: Objective, theta, powers, loss, residuals, damping, exact, scale) -> np.ndarray:
    """One damped Newton step (R, p); parameters pressed against a bound stay there.

    scale   the diagonal of each row's last reweighted Hessian (R, p), which is renewed here
    """
    delta, (low, high) = objective.delta, objective.bounds
    jacobian = _jacobian(objective, theta, powers)
    pull = np.clip(residuals, -delta, delta)  # first derivative of Huber's loss
    size = np.abs(residuals)
    reweighted = delta / np.maximum(size, delta)
    weight = np.where(exact[:, None], (size <= delta) - pull * objective.log, reweighted)
    if objective.log:  # what is derived is log loss
        pull = pull / loss
        weight /= loss * loss
    gradient = (jacobian @ pull[:, :, None])[:, :, 0]
    hessian = (jacobian * weight[:, None]) @ jacobian.transpose(0, 2, 1)
    scale[~exact] = np.einsum("rpp->rp", hessian)[~exact]
    if exact.any():
        _add_curvature(objective, hessian, jacobian, pull, exact)
    pressed = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
    if objective.held:
        pressed |= np.array(objective.held)
    gradient[pressed] = 0
    hessian *= ~(pressed[:, :, None] | pressed[:, None, :])
    diagonal = range(theta.shape[1])
    hessian[:, diagonal, diagonal] += damping[:, None] * scale + pressed + 1e-14
    return np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]


def _jacobian(objective: Objective, theta, powers) -> np.ndarray:
    """Derivatives (R, p, n) of the predicted loss."""
    k, f = objective.z.shape[1], int(objective.floor)
    jacobian = np.empty((*theta.shape, len(objective.z)))
    jacobian[:, :f] = 1
    jacobian[:, f : f + k] = powers
    np.multiply(powers, theta[:, f : f + k, None] * objective.minus_z, out=jacobian[:, f + k :])
    return jacobian


def _add_curvature(objective: Objective, hessian, jacobian, pull, exact) -> None:
    """Add the second derivatives of the terms to the rows that are `exact`: of t = A exp(-a z) those by A and a, and
    twice by a, are -z times the first by A, and by a. (Those of the logarithm are in the weights: `- pull`.)"""
    k, f = objective.z.shape[1], int(objective.floor)
    for i in range(k):
        term, exponent = f + i, f + k + i
        pulled = np.where(exact[:, None], pull * objective.minus_z[i], 0)
        cross, twice = (jacobian[:, term : exponent + 1 : k] @ pulled[:, :, None])[:, :, 0].T
        hessian[:, term, exponent] += cross
        hessian[:, exponent, term] += cross
        hessian[:, exponent, exponent] += twice
