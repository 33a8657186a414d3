"""The optimizer of the fits: sums of power laws under Huber's loss, many problems at once.

Letters: R problems (starts, or bootstrap resamples), n points, k variables, p parameters of each problem.
theta (R, p) = [E (if floor), k terms in nats at z = 0, k exponents]; the model is E + sum_k A_k exp(-a_k z_k), where
z (n, k) is log x less its mean, so that the units of x do not matter.
"""

import itertools
from dataclasses import dataclass

import numpy as np

EXPONENTS = (0.01, 3.0)  # bounds
GRID = {1: 60, 2: 20}  # values of each exponent, by the number of variables
BLOCK = 4  # neighbouring values of each exponent; a descent begins at the best place of each block
MOST_STEPS = 400
NEWTON = 1e-3  # at this weight of the reweighted Hessian, or below it, a step is nearly Newton's
FACTOR = 5  # by which that weight falls after a step that gains, and rises after one that does not
LEAST = 1e-300


@dataclass(frozen=True)
class Objective:
    """Huber's loss of predicted - observed, of log loss or of the loss itself in nats."""

    z: np.ndarray  # (n, k)
    floor: bool
    delta: float
    log: bool = True

    @property
    def bounds(self) -> np.ndarray:
        """Of each parameter (2, p)."""
        k = self.z.shape[1]
        return np.array([[0.0, np.inf]] * (k + self.floor) + [EXPONENTS] * k).T

    def target(self, loss: np.ndarray) -> np.ndarray:
        """What predictions are compared with."""
        return np.log(np.maximum(loss, LEAST)) if self.log else loss

    def loss(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """theta (R, p) -> the powers exp(-a_k z_k) (R, k, n), and the predicted loss (R, n) in nats."""
        k = self.z.shape[1]
        powers = np.exp(theta[:, -k:, None] * -self.z.T)
        loss = (theta[:, None, -2 * k : -k] @ powers)[:, 0]
        return powers, np.maximum(loss + theta[:, :1] if self.floor else loss, LEAST)

    def predict(self, theta: np.ndarray) -> np.ndarray:
        """theta (R, p) -> (R, n), comparable with `target`."""
        return self.target(self.loss(theta)[1])

    def cost(self, residuals: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """residuals (R, n), weights (R, n) of the points (None: 1) -> (R,)."""
        size = np.abs(residuals)
        inner = np.minimum(size, self.delta)
        losses = inner * (size - 0.5 * inner)
        return losses.sum(axis=1) if weights is None else (losses * weights).sum(axis=1)

    def derivatives(
        self, theta: np.ndarray, target: np.ndarray, damping: np.ndarray, weights: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradient (R, p) of the cost, and its Hessian (R, p, p) plus `damping` (R,) times the Hessian of
        the least squares reweighted to the same gradient, which is positive semidefinite."""
        k, f = self.z.shape[1], int(self.floor)
        powers, loss = self.loss(theta)
        residuals = self.target(loss) - target
        jacobian = np.ones((*theta.shape, len(self.z)))  # of the loss in nats
        jacobian[:, f : f + k] = powers
        jacobian[:, f + k :] = powers * theta[:, f : f + k, None] * -self.z.T
        size = np.abs(residuals)
        pull = np.clip(residuals, -self.delta, self.delta)
        weight = (size <= self.delta) - pull * self.log + damping[:, None] * self.delta / np.maximum(size, self.delta)
        if weights is not None:
            pull, weight = pull * weights, weight * weights
        if self.log:
            pull, weight = pull / loss, weight / loss**2
        gradient = (jacobian @ pull[:, :, None])[:, :, 0]
        hessian = (jacobian * weight[:, None]) @ jacobian.transpose(0, 2, 1)
        diagonal = range(theta.shape[1])
        hessian[:, diagonal, diagonal] *= 1 + 1e-9 * damping[:, None]
        for i in range(k):  # of a term A exp(-a z): by A and a, and twice by a
            term, power = f + i, f + k + i
            by_both, twice = (jacobian[:, [term, power]] @ (pull * -self.z[:, i])[:, :, None])[:, :, 0].T
            hessian[:, term, power] += by_both
            hessian[:, power, term] += by_both
            hessian[:, power, power] += twice
        return gradient, hessian


def starts(objective: Objective, loss: np.ndarray) -> np.ndarray:
    """Return where to begin (S, p): the best place of each block of a grid over the exponents, on which the rest
    is linear.

    The linear part is least squares of relative errors without negative solutions, for all grid points at once.
    """
    (n, k), f = objective.z.shape, int(objective.floor)
    axis = np.geomspace(*EXPONENTS, GRID[k])
    weight = 1 / loss if objective.log else np.ones(n)
    powers = np.exp(-objective.z[:, :, None] * axis).reshape(n, -1)
    columns = np.concatenate([np.ones((n, f)), powers], axis=1) * weight[:, None]
    gram, target = columns.T @ columns, columns.T @ (loss * weight)
    points = np.array(list(itertools.product(range(len(axis)), repeat=k)))
    chosen = np.column_stack([np.zeros((len(points), f), int), points + np.arange(k) * len(axis) + f])
    linear, gained = _nonnegative(gram[chosen[:, :, None], chosen[:, None, :]], target[chosen])
    theta = np.concatenate([np.maximum(linear, 1e-4), axis[points]], axis=1)
    order = np.argsort(-gained, kind="stable")
    _, best = np.unique(points[order] // BLOCK, axis=0, return_index=True)
    return theta[order[best]]


def _nonnegative(gram: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares without negative solutions: gram (G, c, c), target (G, c) -> solutions (G, c), and by how much
    each lowers the sum of squares (G,). Of all sets of columns, the best one whose solution is positive."""
    c = target.shape[1]
    best, gained = np.zeros_like(target), np.zeros(len(target))
    for rows in (list(rows) for size in range(1, c + 1) for rows in itertools.combinations(range(c), size)):
        part = gram[:, rows][:, :, rows]
        ridge = 1e-12 * np.einsum("gcc->gc", part)[:, :, None] * np.eye(len(rows))
        solution = np.linalg.solve(part + ridge, target[:, rows, None])[:, :, 0]
        gain = (solution * target[:, rows]).sum(axis=1)
        better = (solution >= 0).all(axis=1) & (gain > gained)
        best[better] = 0
        best[np.ix_(better, rows)] = solution[better]
        gained[better] = gain[better]
    return best, gained


def descend(
    objective: Objective,
    theta: np.ndarray,
    target: np.ndarray,
    tolerance: float = 1e-14,
    held: int | None = None,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the minimum next to each start: theta (R, p), target (R or 1, n) -> theta (R, p), cost (R,).

    Newton steps within bounds. Far from the optimum the Hessian of Huber's loss is nearly zero, so the Hessian of
    reweighted least squares is added. Each row weights it by its own `damping`, which falls with every step that
    lowers the cost. A row ends when a step lowers its cost by less than `tolerance` of it, or no step lowers it.

    held     place of a parameter that keeps its value
    weights  (R, n) of the points in each problem; None: 1
    """
    low, high = objective.bounds
    theta = np.clip(theta, low, high)
    target = np.broadcast_to(target, (len(theta), len(objective.z)))
    costs = objective.cost(objective.predict(theta) - target, weights)
    damping, rows, diagonal = np.ones(len(theta)), np.arange(len(theta)), range(theta.shape[1])
    for _ in range(MOST_STEPS):
        own, cost, weight = theta[rows], costs[rows], damping[rows]
        of_points = None if weights is None else weights[rows]
        gradient, hessian = objective.derivatives(own, target[rows], weight, of_points)
        pressed = ((own <= low) & (gradient > 0)) | ((own >= high) & (gradient < 0))
        if held is not None:
            pressed[:, held] = True
        gradient[pressed] = 0
        hessian *= ~(pressed[:, :, None] | pressed[:, None, :])
        hessian[:, diagonal, diagonal] += pressed + 1e-14
        trial = np.clip(own - np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0], low, high)
        gain = cost - objective.cost(objective.predict(trial) - target[rows], of_points)
        better = gain > 0
        theta[rows[better]] = trial[better]
        costs[rows] = np.where(better, cost - gain, cost)
        settled = np.where(better, (weight <= NEWTON) & (gain <= tolerance * cost), weight > 1e8) | (cost <= 0)
        damping[rows] = np.clip(np.where(better, weight / FACTOR, weight * FACTOR), 1e-14, 1e9)
        rows = rows[~settled]
        if not len(rows):
            break
    return theta, costs
