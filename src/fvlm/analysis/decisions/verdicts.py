"""When a difference is decided, and how many more seeds would decide it.

Decided: an interval over seeds excludes 0. An interval over evaluation videos alone does not include the noise of the
seed, so it makes a difference likely at most.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from fvlm.analysis.compare.bootstrap import LEVEL, OVER_SEEDS, Estimate

DECIDED, LIKELY, OPEN, NOT_RUN = "decided", "likely", "not decided", "not run"
MOST = 50  # further seeds; a larger number means only that the difference is small


@dataclass(frozen=True)
class Verdict:
    """`more_seeds` is NaN where it is not known or above MOST; `needs`: a sentence on what would decide it."""

    word: str
    more_seeds: float = np.nan
    needs: str = ""


def judge(estimate: Estimate, level: float = LEVEL, confounded: str = "") -> Verdict:
    """Return the verdict on a difference with an interval at `level`; `confounded`: what else differs in the data."""
    if not np.isfinite(estimate.value):
        return Verdict(OPEN, needs="Evaluate the runs on the same held-out samples to compare them.")
    same_data = f" on the same data ({confounded} differs)" if confounded else ""
    clear = bool(estimate.low > 0 or estimate.high < 0)
    if estimate.interval != OVER_SEEDS:
        missing = max(2 - estimate.n_seeds, 1)
        needs = f"Train at least {_seeds(missing)} per run{same_data}: an interval over seeds takes two."
        return Verdict(LIKELY if clear else OPEN, needs=needs)
    if clear:
        return Verdict(LIKELY, needs=f"Train the runs{same_data} to decide this.") if confounded else Verdict(DECIDED)
    more = more_seeds(estimate.value, seed_deviation(estimate, level), estimate.n_seeds, level)
    if more is None:
        return Verdict(OPEN, needs=f"More than {MOST} more seeds per run would be needed to decide this.")
    return Verdict(OPEN, float(more), f"About {_seeds(more)} per run would decide this.")


def outcome(estimate: Estimate, verdict: Verdict, level: float = LEVEL) -> dict:
    """Return the columns of the table of decisions that hold an estimate and its verdict."""
    return {
        "estimate": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "interval": estimate.interval,
        "confidence": level,
        "n_seeds": estimate.n_seeds,
        "verdict": verdict.word,
        "more_seeds": verdict.more_seeds,
        "needs": verdict.needs,
    }


def not_run(answer: str, needs: str) -> dict:
    """Return the same columns for a comparison whose runs the study lacks."""
    return {"verdict": NOT_RUN, "answer": answer, "needs": needs, "n_seeds": 0}


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
