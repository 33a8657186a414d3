"""Numbers in sentences, all alike: three significant digits, an interval in brackets."""

import re

import numpy as np
import pandas as pd


def number(value: float, sign: bool = False) -> str:
    """0.0281 -> '0.0281' or '+0.0281'; a true minus sign."""
    text = f"{float(f'{value:.3g}'):{'+' if sign else ''}g}"
    return re.sub(r"e([+-])0*", lambda match: "e" + match[1].strip("+"), text).replace("-", "−")


def within(row: pd.Series | dict, column: str, sign: bool = False) -> str:
    """A value with its interval in columns low and high, where there is one."""
    low, high = row["low"], row["high"]
    told = f" ({number(low, sign)} to {number(high, sign)})" if np.isfinite([low, high]).all() else ""
    return number(row[column], sign) + told


def span(values) -> str:
    """'between low and high' of values, or the one that all are."""
    values = np.asarray(values, float)
    low, high = number(np.nanmin(values)), number(np.nanmax(values))
    return low if low == high else f"between {low} and {high}"


def counted(count: int, what: str) -> str:
    """'n = 1 run', 'n = 3 runs'."""
    return f"n = {count} {what}{'s' * (count != 1)}"


def spread(values, unit: str = "") -> str:
    """'low to high, mean m', with signs."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    low, high, mean = (number(one(values), True) for one in (np.min, np.max, np.mean))
    return f"{low}{unit}" if len(values) == 1 else f"{low} to {high}{unit}, mean {mean}{unit}"
