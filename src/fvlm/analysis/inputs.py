"""What all commands of the analysis share: how they read a CSV file, and how they write and print a result.

A column has one name in the code (`run`, `samples`, ...). A file may use that name, another usual one (ALSO), or any
name that `--columns` gives. Every cell is checked before anything is fitted to it.
"""

import csv
import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from fvlm.analysis.files import check_out
from fvlm.analysis.finished import base_name
from fvlm.errors import UserError
from fvlm.files import write_json

FEWEST = 2  # rows
RESAMPLES = (40, 1_000_000)  # fewer have no 2.5 % beyond an end of the interval
ALSO = {"run": ("run_id",), "samples": ("samples_seen",), "pair": ("size",), "C": ("flops",)}
Rows = list[tuple[int, list[str]]]  # the number of a row in its file (the header is row 1), and its cells


@dataclass(frozen=True)
class Kind:
    """What the cells of a column hold: words, or numbers from `low` to `high`; with `blank` a cell may be empty."""

    words: str
    low: float = math.nan
    high: float = 1e40
    blank: bool = False


WORD = Kind("word")
BLANK = replace(WORD, blank=True)
NUMBER = Kind("number", -1e40)
COUNT = Kind("number, zero or more", 0.0)
SIZE = Kind("positive number from 1e-40 to 1e+40", 1e-40)  # in any unit
LOSS = Kind("positive number from 1e-06 to 1e+06 (nats)", 1e-6, 1e6)  # optimizers end short of the optimum beyond
KINDS = {
    **dict.fromkeys(("run", "architecture", "group", "pair", "key", "source", "video"), WORD),
    **dict.fromkeys(("lr_schedule", "model_size"), BLANK),
    **dict.fromkeys(("step", "samples", "loss_sum"), COUNT),
    **dict.fromkeys(("N", "D", "C", "tokens"), SIZE),
    **dict.fromkeys(("L", "val_loss"), LOSS),
}


def read_cells(path: Path | str, fewest: int = FEWEST) -> tuple[list[str], Rows]:
    """Return the header of a CSV file, and its rows that are not blank.

    raises  UserError for a file that is missing or no CSV, for a column that is there twice, or too few rows
    """
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
    header, rows = lines[0][1], lines[1:]
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
    for number, cells in rows:
        if len(cells) != len(header):
            raise UserError(
                f"{path}, row {number}: {len(cells)} cells where the header has {len(header)}; mend or remove the row"
            )
    if len(rows) < fewest:
        raise UserError(f"{path}: {len(rows)} row{'s' * (len(rows) != 1)} below the header; expected {fewest} or more")
    return header, rows


def check_header(path: Path | str, header: list[str], columns: Iterable[str]) -> None:
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(map(repr, missing))}; found {', '.join(header[:12])}; "
            f"expected {', '.join(columns)}: rename the columns or choose another file"
        )


def table_of(path: Path | str, header: list[str], rows: Rows, kinds: dict[str, Kind]) -> pd.DataFrame:
    """Return those columns of `kinds` that a file has, each cell checked. An empty cell is NaN, or an empty word.

    raises  UserError for a cell of another kind
    """
    places = {name: header.index(name) for name in kinds if name in header}
    values = [
        tuple(_value_of(path, number, name, cells[place], kinds[name]) for name, place in places.items())
        for number, cells in rows
    ]
    return pd.DataFrame(values, columns=list(places))


def _value_of(path: Path | str, number: int, name: str, cell: str, kind: Kind) -> str | float:
    is_word = math.isnan(kind.low)
    if not cell and kind.blank:
        return "" if is_word else math.nan
    value = cell if is_word else _number(cell.replace("_", "?"))  # Python would read 1_0 as 10
    if cell and (is_word or (value is not None and kind.low <= value <= kind.high)):
        return value
    found = "is empty" if not cell else f"is {cell!r}" if value is None else f"is {cell}"
    what = "word" if is_word else f"{kind.words}: mend or remove the row"
    raise UserError(f"{path}, row {number}: {name} {found}; expected a {what}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def add_files(
    parser: ArgumentParser, what: str, columns: str, example: str, written: str = "JSON", needed: bool = False
) -> None:
    """The arguments of a command that reads a CSV file: the file, --out, --columns, --keep.

    what, columns  of the file; example: of --columns
    written        what --out names; needed: without it the command does nothing
    """
    parser.add_argument(what, help=f"CSV: {columns}")
    parser.add_argument("--out", required=needed, metavar="FILE", help=f"the {written} to write")
    parser.add_argument(
        "--columns",
        default="",
        metavar="NAME=COLUMN,...",
        help=f"the file's name of a column, where it has another name: {example}",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="COLUMN=VALUE,...",
        help="only the rows whose COLUMN (as the file calls it) holds one of the values; may be given several times",
    )


def assignments(text: str, option: str) -> dict[str, str]:
    """`a=b,c=d` -> {a: b, c: d}; raises UserError."""
    pairs: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name and equals and value) or name in pairs:
            why = f"{name} is there twice" if name in pairs else f"found {part!r}"
            raise UserError(f"{option}: {why}; expected NAME=VALUE,NAME=VALUE")
        pairs[name] = value
    return pairs


def read(
    path: Path | str,
    args: Namespace,
    needed: tuple[str, ...],
    optional: tuple[str, ...] = (),
    kinds: dict[str, Kind] | None = None,
) -> pd.DataFrame:
    """Return the needed columns of a CSV file, and the optional ones that it has, under their names in the code.

    args   columns: text of --columns; keep: texts of --keep, which choose rows before other cells are checked
    kinds  of columns that differ from KINDS; a column in neither holds numbers

    raises  UserError as `read_cells` and `table_of`, for unknown names in --columns, for a column that is missing, two
            equal rows, and where --keep leaves fewer than two rows
    """
    given, (header, rows) = assignments(args.columns, "--columns"), read_cells(path)
    chosen = _chosen(path, header, given, needed, optional)
    filters = [_filter(text) for text in args.keep]
    extra = [column for column, _ in filters if column not in chosen.values()]
    kinds = KINDS | (kinds or {})
    cells = {column: kinds.get(name, NUMBER) for name, column in chosen.items()} | dict.fromkeys(extra, WORD)
    check_header(path, header, cells)
    rows = _kept(path, header, rows, filters)
    table = table_of(path, header, rows, cells)
    if table.duplicated().any():
        last = table.duplicated().idxmax()
        first = (table == table.loc[last]).all(axis=1).idxmax()
        raise UserError(
            f"{path}: rows {rows[first][0]} and {rows[last][0]} have the same {', '.join(table)}; "
            "each measurement is expected once: remove one of them"
        )
    return pd.DataFrame({name: table[column] for name, column in chosen.items()})


def _chosen(path: Path | str, header: list[str], given: dict[str, str], needed: tuple, optional: tuple) -> dict:
    """Name in the code -> column of the file, of all columns that the file has or --columns names."""
    names = tuple(dict.fromkeys([*needed, *optional]))
    unknown = [name for name in given if name not in names]
    if unknown:
        raise UserError(f"--columns: no column is called {unknown[0]!r} here; expected {_listed(names)}")
    usual = {name: next((one for one in (name, *ALSO.get(name, ())) if one in header), "") for name in names}
    chosen = {name: given.get(name, usual[name]) for name in names if given.get(name, usual[name])}
    for name in needed:
        if name not in chosen:
            also = "".join(f" or {other!r}" for other in ALSO.get(name, ()))
            raise UserError(
                f"{path}: no column {name!r}{also}; found {', '.join(header[:12])}; say which it is with "
                f"--columns {name}=COLUMN"
            )
    for column in chosen.values():
        both = [name for name, other in chosen.items() if other == column]
        if len(both) > 1 and set(both) & set(given):
            raise UserError(f"{path}: column {column!r} would be {_listed(both)}; say with --columns which is which")
    return chosen


def _kept(path: Path | str, header: list[str], rows: Rows, filters: list[tuple[str, list[str]]]) -> Rows:
    """The rows that pass all filters."""
    for column, values in filters:
        place, numbers = header.index(column), {_number(value) for value in values} - {None}
        rows = [row for row in rows if row[1][place] in values or _number(row[1][place]) in numbers]
        if len(rows) < FEWEST:
            left = "1 row is" if len(rows) else "no row is"
            raise UserError(f"{path}: {left} left whose {column} is {_listed(values, 'or')}; change --keep")
    return rows


def _filter(text: str) -> tuple[str, list[str]]:
    column, equals, values = text.partition("=")
    wanted = [value.strip() for value in values.split(",") if value.strip()]
    if not (column.strip() and equals and wanted):
        raise UserError(f"--keep: found {text!r}; expected COLUMN=VALUE,VALUE")
    return column.strip(), wanted


def _listed(names, last: str = "and") -> str:
    *first, end = map(str, names)
    return f"{', '.join(first)} {last} {end}" if first else end


def read_curves(path: Path | str, args: Namespace, along: str) -> pd.DataFrame:
    """Return evaluation curves: run, seed, val_loss, the column `along` (step or samples), and where the file has them
    samples, lr_schedule, model_size; every curve ascends in `along`.

    A file without a column `seed` has a run per name, and `NAME-s43` is a further seed of `NAME`, as in this project.

    raises  UserError as `read`, and for two evaluations of a run at one point
    """
    curves = read(path, args, ("run", along, "val_loss"), ("samples", "lr_schedule", "model_size", "seed"))
    if "seed" not in curves:
        curves["seed"] = curves["run"].str.extract(r"-s(\d+)$")[0].astype(float).fillna(-1)  # -1: a name without one
        curves["run"] = curves["run"].map(base_name)
    twice = curves[curves.duplicated(["run", "seed", along])]
    if len(twice):
        run, at = twice.iloc[0][["run", along]]
        raise UserError(
            f"{path}: run {run} has two evaluations at {along} {at:.10g}; expected one: "
            "give the seeds in a column seed, or remove one of the rows"
        )
    order = {name: place for place, name in enumerate(curves["run"].drop_duplicates())}
    curves = curves.assign(order=curves["run"].map(order)).sort_values(["order", "seed", along], ignore_index=True)
    return curves.drop(columns="order")


def natural(text: str) -> int:
    """An argument that counts something: 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise ArgumentTypeError(f"found {text!r}; expected a whole number, zero or more")
    return int(text)


def resamples(text: str) -> int:
    """An argument that counts resamples: 0 for none, or enough of them for an interval."""
    value, (few, many) = natural(text), RESAMPLES
    if value and not few <= value <= many:
        raise ArgumentTypeError(f"found {text}; expected 0 for no intervals, or {few} to {many}")
    return value


def positive(text: str) -> float:
    """An argument that is a positive number."""
    value = _number(text)
    if value is None or not SIZE.low <= value <= SIZE.high:
        raise ArgumentTypeError(f"found {text!r}; expected a {SIZE.words}")
    return value


def plain(content):
    """Return content as JSON can hold it: numpy's numbers as Python's, numbers that are not finite as None."""
    if isinstance(content, dict):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [plain(value) for value in content]
    if hasattr(content, "tolist"):
        return plain(content.tolist())
    return None if isinstance(content, float) and not math.isfinite(content) else content


def finish(read_from: Path | str, out: Path | str | None, content: dict, summary: Callable[[dict], list[str]]) -> None:
    """Write a command's JSON, whole or not at all, where there is an `out`; then print its summary.

    raises  UserError if that would overwrite the file that was read, or cannot be written
    """
    content = plain(content)
    if out is not None:
        check_out(out, read_from)
        try:
            write_json(out, content)
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written ({error.strerror}); choose another place") from error
    print("\n".join(summary(content)))


def shown(value: float | None, ci: list[float] | None = None) -> str:
    """A number with its interval, as the summaries print them."""
    if value is None:
        return "not identified"
    return f"{value:.4g}" + (f" ({ci[0]:.4g} to {ci[1]:.4g})" if ci else "")
