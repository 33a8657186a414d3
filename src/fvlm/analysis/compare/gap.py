"""The gap between the foveated model and the 16-token baseline, raw and at equal parameters.

The baseline of a pair has more parameters. Each architecture's own curve of loss against log N, at equal
FLOPs, is read off at the other's parameter count: once where the foveated model is, once where the
baseline is.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.compare.bootstrap import Estimate, pooled
from fvlm.analysis.compare.runs import ComparedRuns
from fvlm.analysis.fits.grid import PAIRED, grid_points
from fvlm.config.comparisons import Comparisons

RISES = "rises with N from one size to the next"


def read_off(
    n: np.ndarray, loss: np.ndarray, at: float, scale: Callable[[np.ndarray], np.ndarray] = np.log
) -> tuple[np.ndarray, int]:
    """Loss at `at` parameters, piecewise linear in scale(N); beyond the ends the nearest segment is prolonged.

    n (k,) ascending, k >= 2; loss (k,) or (k, R) -> loss () or (R,), and on which side that
    extrapolates: -1 below the smallest N, 1 above the largest, 0 not
    """
    x, here = scale(n), scale(at)
    right = int(np.clip(np.searchsorted(x, here), 1, len(x) - 1))
    share = (here - x[right - 1]) / (x[right] - x[right - 1])
    return loss[right - 1] + share * (loss[right] - loss[right - 1]), int(here > x[-1]) - int(here < x[0])


def linear(n):
    """The scale of a curve that is read off linearly in N."""
    return n


def percent(loss, reference):
    """How far above `reference` a loss is, in percent of it; positive: worse."""
    return 100 * (loss / reference - 1)


def corrected(
    n_foveated: np.ndarray,
    loss_foveated: np.ndarray,
    n_baseline: np.ndarray,
    loss_baseline: np.ndarray,
    pair: int | tuple[int, int],
    scale: Callable[[np.ndarray], np.ndarray] = np.log,
) -> dict:
    """The gaps of one pair, in percent. Curves ascend in N; losses are (k,), or (k, R) for R seeds or replicates.
    A gap is NaN where a prolonged curve has fallen to zero.

    pair   its place in both curves, or its place in each
    scale  of N, in which the curves are read off: np.log, or `linear`
    """
    left, right = (pair, pair) if isinstance(pair, int) else pair
    own, other = n_foveated[left], n_baseline[right]
    at_foveated, beyond_one = read_off(n_baseline, loss_baseline, own, scale)
    at_baseline, beyond_two = read_off(n_foveated, loss_foveated, other, scale)
    at_foveated, at_baseline = (np.where(loss > 0, loss, np.nan) for loss in (at_foveated, at_baseline))
    return {
        "raw": percent(loss_foveated[left], loss_baseline[right]),
        "at_foveated": percent(loss_foveated[left], at_foveated),
        "at_foveated_extrapolates": beyond_one,
        "at_baseline": percent(at_baseline, loss_baseline[right]),
        "at_baseline_extrapolates": beyond_two,
    }


def gap(
    runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame, comparisons: Comparisons
) -> pd.DataFrame:
    """One row per pair and measure: every size of the grid at each budget, imported pairs, and the pair of ablations
    that the comparisons name.

    measure "validation" is the final validation loss, "evaluation" the held-out loss. The interval is over
    the seeds that all runs of a budget have; with one seed the evaluation has a paired bootstrap over
    evaluation videos, and the validation none.
    """
    study = ComparedRuns(runs, evaluation, bootstrap)
    rows = []
    for family in PAIRED:
        by_budget = grid_points(runs, family).sort_values("C", kind="stable").groupby("budget", sort=False)
        for budget, points in by_budget:
            rows += _rows_at_budget(study, family, budget, points)
    pair = (comparisons.gap.foveated, comparisons.gap.pooled) if comparisons.gap else ()
    if pair and all(study.seeds(base) for base in pair):
        n = [study.runs.loc[study.runs["base"] == base, "params_total"].mean() for base in pair]
        rows += _rows(study, "ablation", "", [", ".join(pair)], [np.array([value]) for value in n], pair)
    return pd.DataFrame(rows, columns=COLUMNS["gap"])


def _rows_at_budget(study: ComparedRuns, family: str, budget: str, points: pd.DataFrame) -> list[dict]:
    sides = [
        points[points["architecture"] == name].set_index("size").sort_values("N")
        for name in ("foveated", "multi_token")
    ]
    common = [size for size in sides[0].index if size in sides[1].index]
    if not common:
        return []
    sides = [side.loc[common] for side in sides]
    names = [(side.loc[size, "architecture"], size) for side in sides for size in common]
    bases = [grid_base(study, *name, budget, family) for name in names]
    return _rows(study, family, budget, common, [side["N"].to_numpy(float) for side in sides], bases)


def grid_base(study: ComparedRuns, architecture: str, size: str, budget: str, family: str = "grid") -> str:
    """The name, without its seed, of the grid's run of one architecture, size and budget."""
    grid = study.of_family(family)
    own = grid[(grid["architecture"] == architecture) & (grid["size"] == size) & (grid["budget"] == budget)]
    return own["base"].iloc[0]


def _rows(study: ComparedRuns, family: str, budget: str, sizes: list[str], n: list[np.ndarray], bases) -> list[dict]:
    """Of the pairs of one budget: `bases` are first the foveated runs, then the baselines, by size as in n."""
    matched = study.matched(list(bases))  # per seed
    validation = np.array([study.runs.loc[runs, "final.val_loss"] for runs in matched], float).T
    evaluation = np.array([[study.loss(run) for run in runs] for runs in matched]).T
    draws = [study.draws(run) for run in matched[0]]
    sampled = None if any(draw is None for draw in draws) else np.array(draws)
    rows = []
    for measure, losses, replicates in (("validation", validation, None), ("evaluation", evaluation, sampled)):
        if not np.isfinite(losses).all():
            continue
        for pair, size in enumerate(sizes):
            found = gaps_of(n, losses, replicates, pair)
            means = losses.reshape(2, len(sizes), -1).mean(axis=2)
            rows.append({
                "family": family, "budget": budget, "size": size, "measure": measure,
                "n_foveated": n[0][pair], "n_baseline": n[1][pair],
                "loss_foveated": means[0, pair], "loss_baseline": means[1, pair],
                **found,
            })  # fmt: skip
    return rows


def gaps_of(
    n: list[np.ndarray],
    losses: np.ndarray,
    draws: np.ndarray | None,
    pair: int | tuple[int, int],
    scale: Callable[[np.ndarray], np.ndarray] = np.log,
) -> dict:
    """The columns of one pair's gaps, see `corrected`; losses (k, seeds) and their replicates (k, R) are those of all
    runs, the foveated ones, by n[0], first."""
    cut = len(n[0])
    left, right = (pair, pair) if isinstance(pair, int) else pair
    if min(map(len, n)) < 2:
        chosen = [left, cut + right]
        raw = pooled(percent(*losses[chosen]), None if draws is None else percent(*draws[chosen]))
        return {**_columns("raw", raw), "note": "one size: no curve to correct with"}

    def every(values: np.ndarray) -> dict:
        return corrected(n[0], values[:cut], n[1], values[cut:], (left, right), scale)

    gaps, spread, row = every(losses), {} if draws is None else every(draws), {}
    for name in ("raw", "at_foveated", "at_baseline"):
        row |= _columns(name, pooled(gaps[name], spread.get(name)))
    row["directions_differ"] = abs(row["at_foveated_percent"] - row["at_baseline_percent"])
    beyond = []
    for name, curve in (("at_foveated", "baseline's"), ("at_baseline", "foveated")):
        side = gaps[f"{name}_extrapolates"]
        row[f"{name}_extrapolates"] = bool(side)
        if side:
            beyond.append(f"the {curve} curve {'below its smallest' if side < 0 else 'above its largest'} size")
    row["note"] = f"extrapolates {' and '.join(beyond)}" if beyond else ""
    if np.isnan(row["directions_differ"]):
        row["note"] += "; so far that no loss is left, and no gap"
    row["note"] = "; ".join(filter(None, [row["note"], *_rising(losses[:cut], losses[cut:])]))
    return row


def _rising(foveated: np.ndarray, baseline: np.ndarray) -> list[str]:
    """Which curves (k, seeds) rise with N from one size to the next: these do not say what parameters are worth."""
    curves = {"foveated": foveated, "baseline's": baseline}
    return [f"the {name} curve {RISES}" for name, loss in curves.items() if (np.diff(loss.mean(axis=1)) > 0).any()]


def _columns(name: str, gap: Estimate) -> dict:
    return {
        f"{name}_percent": gap.value,
        f"{name}_low": gap.low,
        f"{name}_high": gap.high,
        "interval": gap.interval,
        "n_seeds": gap.n_seeds,
    }
