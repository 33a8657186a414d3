"""Evaluation curves: where they begin and end, and the jumps that several of them share.

A loss that falls or rises at the same number of samples in several runs, and stays there, comes from the data: their
order, a change of the mixture, a new shard. Across such a jump no power law in D holds.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

SIDE = 4  # evaluations on each side of a possible jump; below twice as many a curve is not judged
STRONG = 3.5  # jump over its standard error, in one run ...
CONFIRM = 3.0  # ... and in another
SMALLEST = 0.005  # of log loss: a smaller jump is none
EARLY = 0.1  # a best loss within this share of the evaluations ...
EARLY_EVALUATIONS = 3  # ... or within so many is early


def ends(curves: pd.DataFrame) -> pd.DataFrame:
    """One row per run and seed: its best and its last evaluation, and when the best was.

    curves  run, seed, step, val_loss, ascending in step; optional samples, lr_schedule, model_size
    """
    curves = curves.reset_index(drop=True)
    groups = curves.groupby(["run", "seed"], sort=False)
    count = groups.size().to_numpy()
    best = curves.loc[groups["val_loss"].idxmin()]
    last = curves.loc[curves.assign(row=curves.index).groupby(["run", "seed"], sort=False)["row"].last()]
    place = groups.cumcount().loc[best.index].to_numpy() + 1
    early = (place <= np.maximum(EARLY_EVALUATIONS, EARLY * count)) & (place < count / 2)
    columns = {
        "run": best["run"], "seed": best["seed"], "evaluations": count,
        "best": best["val_loss"], "best_step": best["step"], "best_evaluation": place, "best_is_early": early,
        "final": last["val_loss"], "final_step": last["step"],
        "samples": last.get("samples", np.full(len(count), np.nan)),
        **{name: last.get(name, np.full(len(count), "")) for name in ("lr_schedule", "model_size")},
    }  # fmt: skip
    return pd.DataFrame({name: np.asarray(values) for name, values in columns.items()})


@dataclass(frozen=True)
class Step:
    """A possible jump of one curve between two neighbouring evaluations."""

    run: str
    low: float  # samples at the evaluation before
    high: float  # and after
    change: float  # of log loss
    score: float  # the change over its standard error

    def near(self, other: "Step", tolerance: float) -> bool:
        return self.low <= other.high + tolerance and other.low <= self.high + tolerance


@dataclass(frozen=True)
class Jump:
    """The steps of several runs at one place; the clearest is the first and says where it is."""

    steps: tuple[Step, ...]

    @property
    def low(self) -> float:
        return self.steps[0].low

    @property
    def high(self) -> float:
        return self.steps[0].high


def steps_of(run: str, samples: np.ndarray, loss: np.ndarray) -> list[Step]:
    """Every place of a curve that has SIDE evaluations on each side.

    samples, loss (n,), samples ascending. Over the 2 SIDE evaluations around a place log loss is taken as a line with
    a step there, by least squares: a single stray evaluation makes no step, and neither does the curvature of a
    smooth curve, which is even about the place. The noise is the larger of two: the residuals' there, and the whole
    curve's, from its second differences, as median absolute deviation / sqrt 6, which jumps do not move.
    """
    log_loss, n = np.log(np.asarray(loss, float)), len(loss)
    if n < 2 * SIDE:
        return []
    place = np.arange(2 * SIDE)
    design = np.column_stack([np.ones(2 * SIDE), place - place.mean(), place >= SIDE])
    windows = np.lib.stride_tricks.sliding_window_view(log_loss, 2 * SIDE)
    found = windows @ np.linalg.pinv(design).T
    near = np.sqrt(((windows - found @ design.T) ** 2).sum(axis=1) / (2 * SIDE - 3))
    bends = np.diff(log_loss, 2)
    whole = 1.4826 * np.median(np.abs(bends - np.median(bends))) / np.sqrt(6)
    noise = np.maximum(np.maximum(near, whole), 1e-12)
    score = found[:, 2] / (noise * np.sqrt(np.linalg.inv(design.T @ design)[2, 2]))
    low, high = samples[SIDE - 1 : n - SIDE], samples[SIDE : n - SIDE + 1]
    return [Step(run, *map(float, row)) for row in zip(low, high, found[:, 2], score, strict=True)]


def find_jumps(
    curves: dict[str, tuple[np.ndarray, np.ndarray]], tolerance: float | None = None
) -> tuple[list[Jump], list[Step]]:
    """The jumps that at least two curves share, by samples; and the clear steps of one curve alone.

    curves     run -> samples (n,), loss (n,)
    tolerance  how far apart, in samples, the steps of two runs may lie; None: half the distance between evaluations
               of the run that has the jump most clearly

    Clear is a step of STRONG standard errors; in further runs CONFIRM are enough, at the same place and in the same
    direction. On smooth curves with independent noise that is rarely so by chance, since the place is given.
    """
    every = [
        step
        for run, (samples, loss) in curves.items()
        for step in steps_of(run, samples, loss)
        if abs(step.score) >= CONFIRM and abs(step.change) >= SMALLEST
    ]
    every.sort(key=lambda step: -abs(step.score))
    spacing = {run: float(np.median(np.diff(samples))) for run, (samples, _) in curves.items() if len(samples) > 1}
    jumps, alone, used = [], [], set()
    for step in every:
        if step in used or abs(step.score) < STRONG:
            continue
        within = spacing[step.run] / 2 if tolerance is None else tolerance
        like = [other for other in every if other not in used and other.change * step.change > 0]
        near = [other for other in like if other.near(step, within)]
        first = {other.run: other for other in reversed(near)}  # the clearest of each run
        used |= set(near)
        if len(first) > 1:
            jumps.append(Jump(tuple(sorted(first.values(), key=lambda other: -abs(other.score)))))
        else:
            alone.append(step)
    return sorted(jumps, key=lambda jump: jump.low), sorted(alone, key=lambda step: (step.run, step.low))


def between(jumps: list[Jump], first: float, last: float) -> list[tuple[float, float]]:
    """The intervals of samples, from `first` to `last`, that contain no jump."""
    found, start = [], first
    for jump in sorted(jumps, key=lambda jump: jump.low):
        found.append((start, min(jump.low, last)))
        start = max(start, jump.high)
    return [(low, high) for low, high in [*found, (start, last)] if low < high]
