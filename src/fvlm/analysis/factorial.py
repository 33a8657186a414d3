"""The 2 x 2 of query depth and fine pass: main effects and interaction."""

import numpy as np
import pandas as pd

from fvlm.analysis.bootstrap import NO_INTERVAL, OVER_SEEDS, OVER_VIDEOS, interval, t_interval
from fvlm.analysis.catalog import COLUMNS
from fvlm.analysis.study import Study

CELLS = {"deep_fine": "baseline", "shallow_fine": "A1", "deep_coarse": "A6", "shallow_coarse": "A7"}
EFFECTS = {  # weights of the cells, in their order; negative: the first level is better
    "query depth (deep - shallow)": (0.5, -0.5, 0.5, -0.5),
    "fine pass (with - without)": (0.5, 0.5, -0.5, -0.5),
    "interaction (depth effect with - without fine pass)": (1.0, -1.0, -1.0, 1.0),
}


def contrast(cells: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
    """cells (4, ...) in the order of CELLS -> the effect (...)."""
    return np.tensordot(np.asarray(weights), cells, axes=1)


def factorial(runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame) -> pd.DataFrame:
    """Three effects at the best and the final validation and in the evaluation; no row if one of the cells
    is missing.

    With two or more seeds common to the cells the interval is a t interval over seeds. With one, only the
    evaluation has an interval, and it covers the noise of the evaluation videos, not that of the seed.
    """
    study = Study(runs, evaluation, bootstrap)
    seeds = [study.seeds(base) for base in CELLS.values()]
    if not all(seeds):
        return pd.DataFrame(columns=COLUMNS["factorial"])
    common = sorted(set.intersection(*(set(cell) for cell in seeds)))
    tuples = [[cell[seed] for cell in seeds] for seed in common] or [[next(iter(cell.values())) for cell in seeds]]
    rows = []
    for measure in ("best", "final", "evaluation"):
        cells = np.array([[_loss(study, run, measure) for run in runs_] for runs_ in tuples]).T  # (4, seeds)
        draws = [study.draws(run) for run in tuples[0]] if measure == "evaluation" else [None]
        sampled = None if any(draw is None for draw in draws) else np.array(draws)
        rows += [_effect(measure, name, weights, cells, sampled) for name, weights in EFFECTS.items()]
    return pd.DataFrame(rows, columns=COLUMNS["factorial"]).dropna(subset="estimate").reset_index(drop=True)


def _loss(study: Study, run: str, measure: str) -> float:
    return study.loss(run) if measure == "evaluation" else float(study.runs.loc[run, f"{measure}.val_loss"])


def _effect(measure: str, name: str, weights, cells: np.ndarray, sampled: np.ndarray | None) -> dict:
    values = contrast(cells, weights)
    low, high, how = np.nan, np.nan, NO_INTERVAL
    if len(values) > 1:
        (low, high), how = t_interval(values), OVER_SEEDS
    elif sampled is not None:
        (low, high), how = interval(contrast(sampled, weights)), OVER_VIDEOS
    return {
        "measure": measure,
        "effect": name,
        "estimate": values.mean(),
        "low": low,
        "high": high,
        "interval": how,
        "n_seeds": len(values),
        **dict(zip(CELLS, cells.mean(axis=1), strict=True)),
    }
