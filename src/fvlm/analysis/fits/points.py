"""Reading a user's points: a CSV with one row per measurement, checked before anything is fitted to it."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from fvlm.errors import UserError

FEWEST = 2  # rows
LOSS = (1e-6, 1e6)  # nats; beyond, an optimizer with tolerances in nats ends short of the optimum
SIZE = (1e-40, 1e40)  # of any other positive number, in whatever unit
Rows = list[tuple[int, list[str]]]  # the number of a row in its file, and its cells


def read_points(
    path: Path | str,
    columns: tuple[str, ...],
    positive: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    text: tuple[str, ...] = (),
    losses: tuple[str, ...] = ("L",),
    counts: tuple[str, ...] = (),
    keep: Callable[[list[str], Rows], Rows] | None = None,
) -> pd.DataFrame:
    """The given columns of a CSV file, rows in the file's order; other columns are ignored.

    columns   must be there; names are exact
    positive  of all columns: those whose numbers must be above zero
    optional  are returned where the file has them
    text      of all columns: those that hold words (empty only where optional); the others hold finite numbers
    losses    of the positive ones: those in nats, within LOSS; the others lie within SIZE
    counts    of all columns: those whose numbers must not be below zero
    keep      which rows count, of the header and all rows; the others are not looked at
    raises    UserError for a file that is missing or no CSV, a column that is missing, a cell that is empty or of the
              wrong kind, two equal rows, fewer than two rows; rows are counted as in the file, the header is row 1
    """
    header, rows = _cells(path)
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(map(repr, missing))}; found {', '.join(header[:12])}; "
            f"expected {', '.join(columns)}: rename the columns or choose another file"
        )
    chosen = [*columns, *(name for name in optional if name in header and name not in columns)]
    if len(rows) < FEWEST:
        raise UserError(f"{path}: {len(rows)} row{'s' * (len(rows) != 1)} below the header; expected {FEWEST} or more")
    rows = keep(header, rows) if keep else rows
    places = [header.index(name) for name in chosen]
    ranges = {name: _range(name in positive, name in losses, name in counts) for name in chosen}
    seen: dict[tuple, int] = {}
    for number, cells in rows:
        row = tuple(
            _word(path, number, name, cells[place], name in columns)
            if name in text
            else _number(path, number, name, cells[place], ranges[name])
            for name, place in zip(chosen, places, strict=True)
        )
        if row in seen:
            raise UserError(
                f"{path}: rows {seen[row]} and {number} have the same {', '.join(chosen)}; "
                "each measurement is expected once: remove one of them"
            )
        seen[row] = number
    return pd.DataFrame(list(seen), columns=chosen)


def header_of(path: Path | str) -> list[str]:
    """The names of the columns; raises UserError for a file that is no CSV."""
    return _cells(path)[0]


def _cells(path: Path | str) -> tuple[list[str], Rows]:
    """The header, and every row that is not blank with its number in the file."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader if any(map(str.strip, line))]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a CSV file") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: this is no CSV file ({error}); expected a header and rows of numbers") from error
    if not lines:
        raise UserError(f"{path}: the file is empty; expected a CSV file with a header")
    header = lines[0][1]
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            raise UserError(
                f"{path}: the columns are separated by {word}; expected commas (and points in decimals): save it as CSV"
            )
    if any("\0" in cell for _, cells in lines for cell in cells):
        raise UserError(f"{path}: this is no CSV file (it holds null bytes); expected text in UTF-8: save it again")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{path}: column {', '.join(map(repr, twice))} is there twice; expected each name once")
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise UserError(
                f"{path}, row {number}: {len(cells)} cells where the header has {len(header)}; mend or remove the row"
            )
    return header, lines[1:]


def _word(path: Path | str, number: int, name: str, cell: str, needed: bool) -> str:
    if needed and not cell:
        raise UserError(f"{path}, row {number}: {name} is empty; expected a word")
    return cell


Range = tuple[float, float, str]  # the least, the largest, in words


def _range(positive: bool, loss: bool, count: bool) -> Range:
    if positive:
        low, high = LOSS if loss else SIZE
        return low, high, f"positive number from {low:g} to {high:g}{' (nats)' * loss}"
    return (0.0 if count else -SIZE[1]), SIZE[1], f"number{', zero or more' * count}"


def _number(path: Path | str, number: int, name: str, cell: str, within: Range) -> float:
    low, high, words = within
    expected = f"expected a {words}: mend or remove the row"
    try:
        value = float(cell.replace("_", "?"))  # Python would read 1_0 as 10
    except ValueError as error:
        what = f"is {cell!r}" if cell else "is empty"
        raise UserError(f"{path}, row {number}: {name} {what}; {expected}") from error
    if not low <= value <= high:  # nor is NaN
        raise UserError(f"{path}, row {number}: {name} is {cell}; {expected}")
    return value


def check_falls(
    path: Path | str, points: pd.DataFrame, name: str, beside: tuple[str, ...] = (), what: str = ""
) -> None:
    """Refuse a loss L that rises with column `name`, beyond its noise, at fixed columns `beside`.

    The slope of log L on log `name` by least squares is held against zero with Student's t at 97.5 %.

    raises  UserError
    """
    others = [np.log(points[other]) for other in beside if points[other].nunique() > 1]
    design = np.column_stack([np.log(points[name]), np.ones(len(points)), *others])
    design = design - np.where(np.arange(design.shape[1]) == 1, 0, design.mean(axis=0))
    free = len(design) - np.linalg.matrix_rank(design)
    if points[name].nunique() < 2 or free < 1:
        return
    log_loss = np.log(points["L"].to_numpy())
    slope = np.linalg.lstsq(design, log_loss)[0]
    variance = ((log_loss - design @ slope) ** 2).sum() / free * np.linalg.pinv(design.T @ design)[0, 0]
    if slope[0] > max(stdtrit(free, 0.975) * np.sqrt(variance), 1e-6):
        raise UserError(
            f"{path}: the loss L rises with {name}{what} (as {name}^{slope[0]:.2g}); expected one that falls: "
            "check the columns, or leave out the runs that diverged"
        )


def one_schedule(points: pd.DataFrame) -> str:
    """Why points of several schedules of the learning rate (column lr_schedule) cannot be fitted together; empty if
    there is one, or the file does not say: at equal N and D a decayed rate gives a lower loss than a constant one."""
    if "lr_schedule" not in points or points["lr_schedule"].nunique() < 2:
        return ""
    counts = points["lr_schedule"].value_counts(sort=False)
    listed = ", ".join(f"{name}: {count} points" for name, count in counts.items())
    return f"runs of {len(counts)} learning-rate schedules are mixed ({listed}); fit each by itself"


def longest_run(points: pd.DataFrame) -> int:
    """Return the number of points of the run that has most of them: above 1 they lie on curves, and their errors are
    correlated. 1 without a column `run`."""
    return int(points["run"].value_counts().max()) if "run" in points else 1
