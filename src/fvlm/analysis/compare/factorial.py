"""The 2 x 2 of query depth and fine pass: main effects and interaction."""

from functools import partial

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.compare.bootstrap import LEVEL, OVER_SEEDS, OVERALL, Estimate, pooled
from fvlm.analysis.compare.runs import ComparedRuns
from fvlm.config.comparisons import Cells, Comparisons

CELLS = tuple(Cells.model_fields)
EFFECTS = {  # weights of the cells in the order of CELLS; negative: the first level is better
    "query depth (deep - shallow)": (0.5, -0.5, 0.5, -0.5),
    "fine pass (with - without)": (0.5, 0.5, -0.5, -0.5),
    "interaction (depth effect with - without fine pass)": (1.0, -1.0, -1.0, 1.0),
}


def contrast(cells: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
    """cells (4, ...) in the order of CELLS -> the effect (...)."""
    return np.tensordot(np.asarray(weights), cells, axes=1)


def effects(cells: list[np.ndarray]) -> dict[str, Estimate]:
    """Each effect over seeds; cells (4,) of losses (seeds,), in the order of CELLS.

    Cells with the same seeds in the same order should be given as an array (4, seeds): then the effect is taken
    within each seed, and the interval is Student's over seeds. A list of cells with other seeds each gives Welch's
    interval (Welch 1947): variances add, with Satterthwaite's degrees of freedom. One seed in a cell: no interval.
    """
    if isinstance(cells, np.ndarray):
        return {name: pooled(contrast(cells, weights)) for name, weights in EFFECTS.items()}
    return {name: welch(cells, weights) for name, weights in EFFECTS.items()}


def welch(cells: list[np.ndarray], weights: tuple[float, ...]) -> Estimate:
    """The weighted sum of the means of independent samples, with Welch's interval at 95 %."""
    value = float(np.dot(weights, [np.mean(own) for own in cells]))
    fewest = min(map(len, cells))
    if fewest < 2:
        return Estimate(value, n_seeds=fewest)
    parts = np.square(weights) * [np.var(own, ddof=1) / len(own) for own in cells]
    if not parts.any():
        return Estimate(value, value, value, OVER_SEEDS, fewest)
    degrees = parts.sum() ** 2 / sum(part**2 / (len(own) - 1) for part, own in zip(parts, cells, strict=True))
    half = float(stdtrit(degrees, (1 + LEVEL) / 2) * np.sqrt(parts.sum()))
    return Estimate(value, value - half, value + half, OVER_SEEDS, fewest)


def factorial(
    runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame, comparisons: Comparisons
) -> pd.DataFrame:
    """Three effects at the best and the final validation and in the evaluation; no row if one of the cells
    is missing.

    With two or more seeds common to the cells the interval is a t interval over seeds. With one, only the
    evaluation has an interval, and it covers the noise of the evaluation videos, not that of the seed.
    """
    study = ComparedRuns(runs, evaluation, bootstrap)
    cells_of = comparisons.factorial.runs if comparisons.factorial else {}
    matched = study.matched(list(cells_of.values())) if cells_of else []
    if not matched:
        return pd.DataFrame(columns=COLUMNS["factorial"])
    rows = []
    for measure in ("best", "final"):
        cells = np.array([study.runs.loc[names, f"{measure}.val_loss"] for names in matched], float).T  # (4, seeds)
        rows += [_row(measure, name, effect, cells) for name, effect in effects(cells).items()]
    cells = np.array([[study.loss(run) for run in names] for names in matched]).T
    terms = [(base, OVERALL) for base in cells_of.values()]
    for name, weights in EFFECTS.items():
        rows.append(_row("evaluation", name, study.estimate(terms, partial(contrast, weights=weights)), cells))
    return pd.DataFrame(rows, columns=COLUMNS["factorial"]).dropna(subset="estimate").reset_index(drop=True)


def _row(measure: str, name: str, effect: Estimate, cells: np.ndarray) -> dict:
    return {
        "measure": measure,
        "effect": name,
        "estimate": effect.value,
        "low": effect.low,
        "high": effect.high,
        "interval": effect.interval,
        "n_seeds": effect.n_seeds,
        **dict(zip(CELLS, cells.mean(axis=1), strict=True)),
    }
