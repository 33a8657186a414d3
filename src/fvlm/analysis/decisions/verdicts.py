"""When a difference is decided, and how many more seeds would decide it.

Decided: an interval over seeds excludes 0. A difference of one seed is likely at most: if it is larger than the noise
between seeds, as other runs or the curves show it, and if its interval over evaluation videos, where it has one,
excludes 0.
"""

import numpy as np
from scipy.special import stdtrit

from fvlm.analysis.compare.bootstrap import LEVEL, OVER_SEEDS, Estimate
from fvlm.analysis.compare.noise import Noise, excludes_zero, is_clear

DECIDED, LIKELY, OPEN, NOT_RUN = "decided", "likely", "not decided", "not run"
MOST = 50  # further seeds; a larger number means only that the difference is small


def judge(estimate: Estimate, level: float = LEVEL, confounded: str = "", noise: Noise | None = None) -> dict:
    """Return the columns of the table of decisions that hold a difference and its verdict.

    level       of its interval
    confounded  what else differs in the data
    noise       between seeds, for a difference of one seed; None: between cells of one run, which its videos judge
    """
    noise = noise if noise and estimate.interval != OVER_SEEDS else Noise()
    columns = estimate.columns("estimate") | {"confidence": level} | noise.columns(level)
    if not np.isfinite(estimate.value):
        return columns | verdict(OPEN, "Evaluate the runs on the same held-out samples to compare them.")
    same_data = f" on the same data ({confounded} differs)" if confounded else ""
    if estimate.interval != OVER_SEEDS:
        return columns | _of_one_seed(estimate, level, same_data, noise)
    clear = excludes_zero(estimate)
    if clear and confounded:
        return columns | verdict(LIKELY, f"Train the runs{same_data} to decide this.")
    if clear:
        return columns | verdict(DECIDED)
    return columns | verdict(OPEN, *_further(estimate, seed_deviation(estimate, level), level, same_data=""))


def _of_one_seed(estimate: Estimate, level: float, same_data: str, noise: Noise) -> dict:
    """The verdict of a difference without an interval over seeds. If nothing shows the noise between seeds, the
    interval over evaluation videos alone makes it likely."""
    word = LIKELY if is_clear(estimate, noise, level) else OPEN
    if noise.runs:
        return verdict(word, *_further(estimate, noise.spread, level, same_data))
    missing = max(2 - estimate.n_seeds, 1)
    return verdict(word, f"Train at least {_seeds(missing)} per run{same_data}: an interval over seeds takes two.")


def _further(estimate: Estimate, deviation: float, level: float, same_data: str) -> tuple[str, float]:
    """A sentence on how many more seeds would decide a difference, and their number."""
    more = more_seeds(estimate.value, deviation, estimate.n_seeds, level)
    if more is None:
        return f"More than {MOST} more seeds per run{same_data} would be needed to decide this.", np.nan
    return f"About {_seeds(more)} per run{same_data} would decide this.", more


def verdict(word: str, needs: str = "", more_seeds: float = np.nan) -> dict:
    """The columns of a verdict: `needs` is a sentence on what would decide it; `more_seeds` is NaN where it is not
    known or above MOST."""
    return {"verdict": word, "needs": needs, "more_seeds": more_seeds}


def not_run(answer: str, needs: str) -> dict:
    """Return the columns of a comparison whose runs the study lacks."""
    return verdict(NOT_RUN, needs) | {"answer": answer, "n_seeds": 0}


def seed_deviation(estimate: Estimate, level: float = LEVEL) -> float:
    """Return the standard deviation over seeds (n - 1) of a difference, from its t interval at `level`."""
    n = estimate.n_seeds
    return (estimate.high - estimate.low) / 2 * np.sqrt(n) / stdtrit(n - 1, (1 + level) / 2)


def more_seeds(value: float, deviation: float, seeds: int, level: float = LEVEL) -> int | None:
    """Return how many more than `seeds` make t(n - 1) s / sqrt(n) < |value|, if value and deviation stay as they are;
    None above MOST."""
    n = np.arange(max(seeds + 1, 2), seeds + MOST + 1)
    enough = stdtrit(n - 1, (1 + level) / 2) * deviation / np.sqrt(n) < abs(value)
    return int(n[np.argmax(enough)] - seeds) if enough.any() else None


def _seeds(count: int) -> str:
    return f"{count} more seed{'s' * (count != 1)}"
