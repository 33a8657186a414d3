"""Straight lines in log-log, by least squares."""

import numpy as np
from scipy.special import stdtrit

from fvlm.analysis.fits.sums import Estimate


def log_slope(name: str, x: np.ndarray, y: np.ndarray, few: str) -> tuple[Estimate, float]:
    """Return the slope of log y on log x with its 95 % t interval, and the root mean square residual.

    x, y  positive, as numbers themselves; y may be NaN
    few   the reason where there are fewer than three points; an interval wider than 1 is not identified either
    """
    x, y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    if len(x) < 3 or not np.isfinite(y).all():
        return Estimate(name, np.nan, np.nan, np.nan, few if len(x) < 3 else f"no values for {name}"), np.nan
    slope, intercept = np.polyfit(x, y, 1)
    residuals = y - intercept - slope * x
    error = np.sqrt((residuals**2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum())
    low, high = slope + np.array([-1, 1]) * stdtrit(len(x) - 2, 0.975) * error
    if high - low > 1:
        values, reason = (np.nan,) * 3, f"the interval, {low:.2g} to {high:.2g}, is too wide"
    else:
        values, reason = (float(slope), float(low), float(high)), ""
    return Estimate(name, *values, reason), float(np.sqrt(np.mean(residuals**2)))


def log_band(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the least-squares line of y on x (three points or more) at `at`, and the half width of its 95 % t band:
    where the line lies, not where a further point would."""
    slope, intercept = np.polyfit(x, y, 1)
    spread = np.sqrt(((y - intercept - slope * x) ** 2).sum() / (len(x) - 2))
    away = np.sqrt(1 / len(x) + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    return intercept + slope * at, stdtrit(len(x) - 2, 0.975) * spread * away


def size_exponents(n_opt: Estimate, d_opt: Estimate, mixed: str) -> dict:
    """Return the exponents a of N_opt ~ C^a and b of D_opt ~ C^b, as the commands write them.

    mixed   why neither can be fitted; empty if they can
    """
    exponents = {"a": n_opt, "b": d_opt}
    known = {name: not (mixed or one.reason) for name, one in exponents.items()}
    reason = mixed or n_opt.reason
    return {
        **{name: one.value if known[name] else None for name, one in exponents.items()},
        "ci": {name: [one.low, one.high] if known[name] else None for name, one in exponents.items()},
        "identified": not reason,
        "reason": reason or None,
    }
