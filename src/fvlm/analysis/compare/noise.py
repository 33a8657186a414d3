"""How much a difference would change with other seeds, for runs that have one seed each.

Runs of the study with several seeds show it. Without such runs, the last evaluations of the curves show how far a loss
moves within one training. That is less than between seeds, so a difference must be larger to count.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from fvlm.analysis.compare.bootstrap import LEVEL, OVER_SEEDS, Estimate

LAST_SHARE = 0.25  # share of a curve's evaluations whose spread is measured ...
FEWEST = 5  # ... and how many there must be at least
DOUBT = 5.0  # the spread between seeds is assumed to be at most so many times that of the last evaluations
SMALLEST = 1e-9  # a smaller spread, in nats, is rounding: seeds or evaluations that are copies
MANY = 1000  # a difference of more spreads than this is given as "more than"


@dataclass(frozen=True)
class Noise:
    """The spread of a difference between seeds, where the difference itself has one seed.

    spread   standard deviation of the difference; NaN: nothing shows it
    degrees  degrees of freedom of the spread
    runs     number of runs whose seeds show it; 0: the last evaluations of the compared runs show it
    """

    spread: float = np.nan
    degrees: float = np.nan
    runs: int = 0

    @property
    def known(self) -> bool:
        return bool(self.spread > SMALLEST)

    @property
    def source(self) -> str:
        """What shows the spread, in words; empty if nothing does."""
        if not self.known:
            return ""
        return f"between seeds of {self.runs} run{'s' * (self.runs != 1)}" if self.runs else "of the last evaluations"

    def weighted(self, weights: np.ndarray) -> "Noise":
        """Return the noise of a weighted sum of losses, if this is the noise of one."""
        return replace(self, spread=float(self.spread * np.linalg.norm(weights)))

    def times(self, level: float) -> float:
        """Return the number of spreads above which a difference is likely: Student's t, of a lower bound DOUBT times
        that."""
        return float(stdtrit(self.degrees, (1 + level) / 2)) * (1.0 if self.runs else DOUBT)

    def columns(self, level: float) -> dict:
        """Return the columns of a table that hold the spread, what shows it, and the smallest likely difference."""
        least = self.spread * self.times(level) if self.known else np.nan
        return {"noise": self.spread if self.known else np.nan, "noise_from": self.source, "likely_above": least}

    def words(self, value: float) -> str:
        """Return how many spreads a difference is: `about 42 times the spread of the last evaluations`."""
        if not self.known:
            return "nothing shows the noise between seeds"
        times = abs(value) / self.spread
        return f"{f'about {rounded(times)}' if times < MANY else f'more than {MANY}'} times the spread {self.source}"


def excludes_zero(estimate: Estimate) -> bool:
    return bool(estimate.low > 0 or estimate.high < 0)


def is_clear(estimate: Estimate, noise: Noise, level: float = LEVEL) -> bool:
    """Return whether a difference is more than its noise.

    Its interval, if it has one, excludes 0. A difference of one seed is also larger than the noise between seeds, if
    anything shows that noise.
    """
    if estimate.interval == OVER_SEEDS or not noise.known:
        return excludes_zero(estimate)
    beyond = abs(estimate.value) > noise.spread * noise.times(level)
    return bool(beyond and (excludes_zero(estimate) or np.isnan(estimate.low)))


def rounded(times: float) -> str:
    """Two significant digits without an exponent, at most one decimal: 0.3, 4.2, 42, 420."""
    return f"{times:.1f}" if times < 9.95 else f"{float(f'{times:.2g}'):g}"


def noise_of(losses: pd.DataFrame, curves: list[pd.DataFrame], weights: np.ndarray, paired: bool) -> Noise:
    """Return the noise of a weighted sum of losses of runs with one seed each.

    losses   comparable runs: run, seed, loss
    curves   step and val_loss of each compared run, ascending in step
    weights  (compared runs,) of their losses
    paired   the compared runs have one seed in common
    """
    found = between_seeds(losses, paired).weighted(weights)
    return found if found.known else of_last_evaluations(curves, weights)


def between_seeds(losses: pd.DataFrame, paired: bool) -> Noise:
    """Return the noise of the loss of one run, as the runs with several seeds show it; one spread for all runs.

    It is the spread around each run's mean. If `paired`, what all runs of a seed have in common is removed too, since
    it cancels in a difference of runs with the same seed.

    losses  run, seed, loss
    """
    values, degrees, runs = _around_runs(losses, paired)
    if paired and degrees <= 0:
        values, degrees, runs = _around_runs(losses, paired=False)
    return Noise(float(np.sqrt((values**2).sum() / degrees)), degrees, runs) if degrees > 0 else Noise()


def _around_runs(losses: pd.DataFrame, paired: bool) -> tuple[np.ndarray, int, int]:
    """Return the residuals of a least-squares fit by run, and by seed if `paired`; their degrees of freedom; the number
    of runs."""
    fitted = ["run", "seed"][: 1 + paired]
    own, alone = losses, True
    while alone:  # a loss that is the only one of its run or seed has no residual
        kept = np.all([own.groupby(name)["loss"].transform("size") > 1 for name in fitted], axis=0)
        own, alone = own[kept], not kept.all()
    groups, runs = own.groupby("run")["loss"], own["run"].nunique()
    values = (own["loss"] - groups.transform("mean")).to_numpy(float)
    if not paired or own.empty:
        return values, len(own) - runs, runs
    seeds = pd.get_dummies(own["seed"]).astype(float)
    seeds = (seeds - seeds.groupby(own["run"]).transform("mean")).to_numpy()
    effects, _, rank, _ = np.linalg.lstsq(seeds, values, rcond=None)
    return values - seeds @ effects, len(own) - runs - int(rank), runs


def of_last_evaluations(curves: list[pd.DataFrame], weights: np.ndarray) -> Noise:
    """Return the noise as the last evaluations show it: their spread around a straight line, in each run's curve.

    Degrees of freedom are Satterthwaite's. Nothing is shown if a curve has too few evaluations.
    """
    found = [_residuals(curve) for curve in curves]
    if not found or not all(found):
        return Noise()
    parts, degrees = np.square(weights) * [variance for variance, _ in found], [left for _, left in found]
    if not parts.sum() > 0:
        return Noise()
    return Noise(float(np.sqrt(parts.sum())), float(parts.sum() ** 2 / (parts**2 / degrees).sum()))


def _residuals(curve: pd.DataFrame) -> tuple[float, int] | None:
    """Return the variance of the last evaluations around their straight line, and its degrees of freedom."""
    x, y = (curve[name].to_numpy(float) for name in ("step", "val_loss"))
    known = np.isfinite(y)
    count = int(np.ceil(LAST_SHARE * known.sum()))
    if count < FEWEST:
        return None
    x, y = x[known][-count:], y[known][-count:]
    x = x - x.mean()
    line = y.mean() + x * (x @ y) / (x @ x)
    return float(((y - line) ** 2).sum() / (len(y) - 2)), len(y) - 2


def slopes(combine: Callable[[np.ndarray], np.ndarray], losses: np.ndarray) -> np.ndarray:
    """Return how much `combine` of losses (terms,) changes with each loss (terms,)."""
    step = 1e-4 * np.abs(losses).max()
    moved = losses[:, None] + step * np.hstack([np.eye(len(losses)), -np.eye(len(losses))])
    above, below = np.split(combine(moved), 2)
    return (above - below) / (2 * step)


class SeedsOfCurves:
    """The noise of differences between the runs of a file of curves.

    last    run, seed, and losses at the best and the final evaluation, as `curves.ends` gives them
    curves  run, seed, step, val_loss, ascending in step
    """

    def __init__(self, last: pd.DataFrame, curves: pd.DataFrame):
        self.last, self.seeds, self.between = last, {}, {}
        self.curves = dict(list(curves.groupby(["run", "seed"])))
        for run, seed in zip(last["run"], last["seed"], strict=True):
            self.seeds.setdefault(run, []).append(seed)

    def noise(self, runs: list[str], weights: tuple[float, ...], measure: str) -> Noise:
        """Return the noise of a weighted sum of the runs' losses: of their one common seed, or of their means over the
        seeds of each if they have none in common."""
        seeds = [self.seeds[run] for run in runs]
        common = set.intersection(*map(set, seeds))
        used = [list(common) or own for own in seeds]
        scaled = np.array(weights) / np.sqrt([len(own) for own in used])
        key = measure, bool(common)
        if key not in self.between:
            self.between[key] = between_seeds(self.last.rename(columns={measure: "loss"}), bool(common))
        found = self.between[key].weighted(scaled)
        curves = [self.curves[run, own[0]] for run, own in zip(runs, used, strict=True)]
        return found if found.known else of_last_evaluations(curves, scaled)
