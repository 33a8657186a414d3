"""What all commands of the analysis share: how they read a CSV file, and how they write and print a result.

A column has one name in the code (`run`, `samples`, ...). A file may use that name, another usual one (ALSO), or any
name that `--columns` gives.
"""

import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from fvlm.analysis.files import check_out
from fvlm.analysis.finished import base_name
from fvlm.analysis.fits.points import FEWEST, SIZE, Rows, header_of, read_points
from fvlm.errors import UserError
from fvlm.files import write_json

ALSO = {"run": ("run_id",), "samples": ("samples_seen",), "pair": ("size",), "C": ("flops",)}
TEXT = ("run", "architecture", "group", "pair", "key", "source", "video", "lr_schedule", "model_size")
BLANK = ("lr_schedule", "model_size")  # these columns of words may have empty cells
RESAMPLES = (40, 1_000_000)  # fewer have no 2.5 % beyond an end of the interval


def add_columns(parser: ArgumentParser, example: str) -> None:
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
    positive: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
    blank: tuple[str, ...] = BLANK,
) -> pd.DataFrame:
    """Return the needed columns of a CSV file, and the optional ones that it has, under their names in the code.

    args      columns: text of --columns; keep: texts of --keep
    positive  of all columns: those whose numbers must be above zero
    words     columns of words beside TEXT; blank: columns of words that may have empty cells

    raises  UserError as `read_points`, for unknown names in --columns, and where --keep leaves fewer than two rows
    """
    given, header = assignments(args.columns, "--columns"), header_of(path)
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
    filters = [_filter(text) for text in args.keep]
    extra = [column for column, _ in filters if column not in chosen.values()]
    empty = tuple(dict.fromkeys(chosen[name] for name in blank if name in chosen))
    table = read_points(
        path,
        tuple(name for name in dict.fromkeys([*chosen.values(), *extra]) if name not in empty),
        optional=empty,
        positive=tuple(chosen[name] for name in positive if name in chosen),
        text=(*(chosen[name] for name in (*TEXT, *words) if name in chosen), *extra),
        losses=tuple(chosen[name] for name in ("L", "val_loss") if name in chosen),
        counts=tuple(chosen[name] for name in ("step", "samples", "loss_sum") if name in chosen),
        keep=_kept(path, filters),
    )
    return pd.DataFrame({name: table[column] for name, column in chosen.items()})


def read_curves(path: Path | str, args: Namespace, along: str) -> pd.DataFrame:
    """Return evaluation curves: run, seed, val_loss, the column `along` (step or samples), and where the file has them
    samples, lr_schedule, model_size; every curve ascends in `along`.

    A file without a column `seed` has a run per name, and `NAME-s43` is a further seed of `NAME`, as in this project.

    raises  UserError as `read`, and for two evaluations of a run at one point
    """
    optional = ("samples", "lr_schedule", "model_size", "seed")
    curves = read(path, args, ("run", along, "val_loss"), optional, positive=("val_loss",))
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


def _kept(path: Path | str, filters: list[tuple[str, list[str]]]) -> Callable[[list[str], Rows], Rows]:
    """The rows that pass all filters, chosen before their other cells are checked."""

    def keep(header: list[str], rows: Rows) -> Rows:
        for column, values in filters:
            place = header.index(column)
            rows = [row for row in rows if _holds(row[1][place], values)]
            if len(rows) < FEWEST:
                left = "1 row is" if len(rows) else "no row is"
                raise UserError(f"{path}: {left} left whose {column} is {_listed(values, 'or')}; change --keep")
        return rows

    return keep


def _filter(text: str) -> tuple[str, list[str]]:
    column, equals, values = text.partition("=")
    wanted = [value.strip() for value in values.split(",") if value.strip()]
    if not (column.strip() and equals and wanted):
        raise UserError(f"--keep: found {text!r}; expected COLUMN=VALUE,VALUE")
    return column.strip(), wanted


def _holds(cell: str, values: list[str]) -> bool:
    """True if a cell holds one of the values: the same word, or the same number."""
    value = _value(cell)
    return cell in values or (value is not None and value in map(_value, values))


def _value(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _listed(names, last: str = "and") -> str:
    *first, end = map(str, names)
    return f"{', '.join(first)} {last} {end}" if first else end


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
    value = _value(text)
    if value is None or not SIZE[0] <= value <= SIZE[1]:
        raise ArgumentTypeError(f"found {text!r}; expected a positive number from {SIZE[0]:g} to {SIZE[1]:g}")
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


def write_result(read_from: Path | str, out: Path | str, content: dict) -> None:
    """Write a command's JSON, whole or not at all.

    raises  UserError if that would overwrite the file that was read, or cannot be written
    """
    check_out(out, read_from)
    try:
        write_json(out, plain(content))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); choose another place") from error


def shown(value: float | None, ci: list[float] | None = None) -> str:
    """A number with its interval, as the summaries print them."""
    if value is None:
        return "not identified"
    return f"{value:.4g}" + (f" ({ci[0]:.4g} to {ci[1]:.4g})" if ci else "")
