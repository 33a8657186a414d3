"""When a difference is decided, and how many seeds it would take.

Decided: an interval over seeds excludes 0. An interval over evaluation videos alone does not know the noise of the
seed; it makes a difference likely at most.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from fvlm.analysis.compare.bootstrap import LEVEL, OVER_SEEDS, Estimate

DECIDED, LIKELY, OPEN, NOT_RUN = "decided", "likely", "not decided", "not run"
MOST = 50  # further seeds; an estimate of more says only that the difference is small


@dataclass(frozen=True)
class Verdict:
    """`more_seeds` is NaN where it is not known or above MOST; `needs` says in words what a decision needs."""

    word: str
    more_seeds: float = np.nan
    needs: str = ""


def judge(estimate: Estimate, level: float = LEVEL, confounded: str = "") -> Verdict:
    """The verdict on a difference with an interval at `level`; `confounded`: what else differs, in words."""
    if not np.isfinite(estimate.value):
        return Verdict(OPEN, needs="losses on the same held-out samples")
    clear = bool(estimate.low > 0 or estimate.high < 0)
    if estimate.interval != OVER_SEEDS:
        missing = max(2 - estimate.n_seeds, 1)
        needs = f"at least {_seeds(missing)} of each run, to have an interval over seeds at all"
        needs += f", on the same data ({confounded})" if confounded else ""
        return Verdict(LIKELY if clear else OPEN, needs=needs)
    if clear:
        return Verdict(LIKELY, needs=f"runs on the same data ({confounded})") if confounded else Verdict(DECIDED)
    more = more_seeds(estimate.value, seed_deviation(estimate, level), estimate.n_seeds, level)
    if more is None:
        return Verdict(OPEN, needs=f"more than {MOST} more seeds of each run")
    return Verdict(OPEN, float(more), f"about {_seeds(more)} of each run")


def seed_deviation(estimate: Estimate, level: float = LEVEL) -> float:
    """Standard deviation over seeds (n - 1) of a difference, from its t interval at `level`."""
    n = estimate.n_seeds
    return (estimate.high - estimate.low) / 2 * np.sqrt(n) / stdtrit(n - 1, (1 + level) / 2)


def more_seeds(value: float, deviation: float, seeds: int, level: float = LEVEL) -> int | None:
    """How many more than `seeds` until t(n - 1) s / sqrt(n) < |value|, if difference and deviation stay as they are;
    None above MOST."""
    n = np.arange(max(seeds + 1, 2), seeds + MOST + 1)
    enough = stdtrit(n - 1, (1 + level) / 2) * deviation / np.sqrt(n) < abs(value)
    return int(n[np.argmax(enough)] - seeds) if enough.any() else None


def _seeds(count: int) -> str:
    return f"{count} more seed{'s' * (count != 1)}"
