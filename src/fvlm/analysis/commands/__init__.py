"""Commands for a user's own points and curves: one module each, which reads files, calls the library and writes one."""

import argparse
from pathlib import Path

import numpy as np

from fvlm.analysis.fits.grid import budgets_of
from fvlm.analysis.fits.points import SIZE
from fvlm.analysis.fits.scaling import log_slope
from fvlm.errors import UserError
from fvlm.files import write_json

WIDEST_BUDGET = 1.3  # largest C / smallest C
RESAMPLES = (40, 1_000_000)  # fewer have no 2.5 % beyond an end of the interval


def check_out(out: Path | str, *read: Path | str, option: str = "--out") -> None:
    """Refuse an output that is a folder, or one of the files that were read.

    raises  UserError
    """
    if not str(out) or Path(out).is_dir():
        raise UserError(f"{option} {out or repr('')}: expected the name of a file, not a folder")
    if any(Path(out).resolve() == Path(path).resolve() for path in read):
        raise UserError(f"{option} {out}: this is the file that was read; expected another name")


def write_result(read: Path | str, out: Path | str, content: dict) -> None:
    """Write a command's JSON, whole or not at all.

    raises  UserError if that would overwrite what was read, or cannot be written
    """
    check_out(out, read)
    try:
        write_json(out, content)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); choose another place") from error


def number(value: float) -> float | None:
    """A plain float; None where there is no finite value."""
    return float(value) if np.isfinite(value) else None


def interval(low: float, high: float) -> list[float] | None:
    return None if number(low) is None or number(high) is None else [float(low), float(high)]


def bootstrap_words(draws: int, seed: int) -> dict | None:
    """How the intervals were made; None without any."""
    return {"of": "residuals, in moving blocks", "level": 0.95, "draws": draws, "seed": seed} if draws else None


def natural(text: str) -> int:
    """An argument that counts something: 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a whole number, zero or more")
    return int(text)


def resamples(text: str) -> int:
    """An argument that counts resamples: 0 for none, or enough of them for an interval."""
    value, (few, many) = natural(text), RESAMPLES
    if value and not few <= value <= many:
        raise argparse.ArgumentTypeError(f"found {text}; expected 0 for no intervals, or {few} to {many}")
    return value


def positive(text: str) -> float:
    """An argument that is a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not SIZE[0] <= value <= SIZE[1]:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a positive number from {SIZE[0]:g} to {SIZE[1]:g}")
    return value


def shown(value: float | None, ci: list[float] | None = None) -> str:
    """A number with its interval, as the summaries print them."""
    if value is None:
        return "not identified"
    return f"{value:.4g}" + (f" ({ci[0]:.4g} to {ci[1]:.4g})" if ci else "")


def separate_budgets(path: Path | str, flops: np.ndarray) -> np.ndarray:
    """Which budget each point belongs to (grid.budgets_of).

    raises  UserError where no gaps tell the budgets apart
    """
    budgets = budgets_of(flops)
    for budget in np.unique(budgets):
        own = flops[budgets == budget]
        if own.max() > WIDEST_BUDGET * own.min():
            raise UserError(
                f"{path}: no gap of 5 % between the budgets from {own.min():.3g} to {own.max():.3g}; "
                "expected runs at a few budgets: write each run's budget into its column"
            )
    return budgets


def exponent(name: str, flops, optimum, refused: str, few: str) -> tuple[float | None, list[float] | None, str]:
    """Slope of log optimum on log flops and its interval, or None for both and the reason: `refused`, or `few` where
    there are fewer than three points. A column of NaN gives None."""
    x, y = np.log(np.asarray(flops, float)), np.log(np.asarray(optimum, float))
    if refused or len(x) < 3:
        return None, None, refused or few
    if not np.isfinite(y).all():
        return None, None, f"no values for {name}"
    found, _ = log_slope(name, x, y)
    return number(found.value), interval(found.low, found.high), found.reason
