"""Intervals: from the shared bootstrap replicates of the evaluation, or from several seeds."""

import numpy as np
import pandas as pd
from scipy.special import stdtrit

LEVEL = 0.95
NO_INTERVAL = "none"
OVER_VIDEOS = "paired bootstrap over evaluation videos"
OVER_SEEDS = "t over seeds"


class Replicates:
    """The bootstrap table: every row was resampled with the same draws, so that rows may be subtracted."""

    def __init__(self, table: pd.DataFrame):
        keys = ["run", "mode", "frames", "source", "kind"]
        names = [name for name in table.columns if name not in keys]
        values = table[names].to_numpy(float)
        self._rows = dict(zip(table[keys].itertuples(index=False, name=None), values, strict=True))

    def loss(
        self, run: str, mode: str, frames: str = "own", kind: str = "all", source: str = "all"
    ) -> np.ndarray | None:
        """Replicates (R,) of a loss in nats per token; None if this was not evaluated."""
        return self._rows.get((run, mode, frames, source, kind))


def interval(draws: np.ndarray | None) -> tuple[float, float]:
    """Percentile interval of replicates; NaN when there are none."""
    if draws is None or draws.size == 0 or not np.isfinite(draws).all():
        return np.nan, np.nan
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's t interval of the mean of independent values, one per seed; NaN below two values."""
    n = len(values)
    if n < 2:
        return np.nan, np.nan
    half = stdtrit(n - 1, (1 + LEVEL) / 2) * np.std(values, ddof=1) / np.sqrt(n)
    return float(np.mean(values) - half), float(np.mean(values) + half)
