"""What the commands that compare runs have in common: which column is which, which rows count, and the files.

Columns have one name in the code (`run`, `samples`, ...). A file may use the name that the code's own tables have, one
of the usual others (ALSO), or any name that `--columns` gives.
"""

import math
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from fvlm.analysis.finished import base_name
from fvlm.analysis.fits.points import FEWEST, Rows, header_of, read_points
from fvlm.errors import UserError

ALSO = {"run": ("run_id",), "samples": ("samples_seen",), "pair": ("size",)}
TEXT = ("run", "architecture", "group", "pair", "key", "source", "video", "lr_schedule", "model_size")
UNSAID = ("lr_schedule", "model_size")  # may be empty: these only explain


def add_columns(parser: ArgumentParser, example: str) -> None:
    parser.add_argument(
        "--columns",
        default="",
        metavar="NAME=COLUMN,...",
        help=f"what the file calls a column, where it has another name: {example}",
    )
    add_keep(parser)


def add_keep(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="COLUMN=VALUE,...",
        help="only the rows whose COLUMN (as the file calls it) holds one of the values; may be given several times",
    )


def assignments(text: str, option: str) -> dict[str, str]:
    """`a=b,c=d` -> {a: b, c: d}; raises UserError."""
    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name and equals and value) or name in found:
            why = f"{name} is there twice" if name in found else f"found {part!r}"
            raise UserError(f"{option}: {why}; expected NAME=VALUE,NAME=VALUE")
        found[name] = value
    return found


def read(
    path: Path | str,
    columns: str,
    keep: list[str],
    needed: tuple[str, ...],
    optional: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
) -> pd.DataFrame:
    """The needed columns of a CSV file, and the optional ones that it has, under their names in the code.

    columns  text of --columns; keep: texts of --keep

    raises  UserError as `read_points`, for unknown names in `columns`, and where no row is kept
    """
    given, found = assignments(columns, "--columns"), header_of(path)
    unknown = [name for name in given if name not in (*needed, *optional)]
    if unknown:
        raise UserError(f"--columns: no column is called {unknown[0]!r} here; expected {_words((*needed, *optional))}")
    called = {name: _called(name, found, given) for name in (*needed, *optional)}
    for name in needed:
        if called[name] not in found and name not in given:
            also = "".join(f" or {other!r}" for other in ALSO.get(name, ()))
            raise UserError(
                f"{path}: no column {name!r}{also}; found {', '.join(found[:12])}; say which it is with "
                f"--columns {name}=COLUMN"
            )
    filters = [_filter(text) for text in keep]
    chosen = {name: column for name, column in called.items() if name in (*needed, *given) or column in found}
    for column in chosen.values():
        both = [name for name, other in chosen.items() if other == column]
        if len(both) > 1:
            raise UserError(f"{path}: column {column!r} would be {_words(both)}; say with --columns which is which")
    extra = [column for column, _ in filters if column not in chosen.values()]
    unsaid = [chosen[name] for name in UNSAID if name in chosen]
    table = read_points(
        path,
        tuple(name for name in dict.fromkeys([*chosen.values(), *extra]) if name not in unsaid),
        optional=tuple(unsaid),
        positive=tuple(chosen[name] for name in positive if name in chosen),
        text=(*(chosen[name] for name in TEXT if name in chosen), *extra),
        losses=tuple(chosen[name] for name in ("L", "val_loss") if name in chosen),
        counts=tuple(chosen[name] for name in ("step", "samples", "loss_sum") if name in chosen),
        keep=_kept(path, filters, fewest=1),
    )
    return pd.DataFrame({name: table[column] for name, column in chosen.items()}).reset_index(drop=True)


def read_kept(
    path: Path | str, keep: list[str], columns: tuple[str, ...], positive: tuple[str, ...], words: tuple[str, ...] = ()
) -> pd.DataFrame:
    """`read_points` of the columns and, where there are, the other positive ones and the words; rows as --keep says.

    raises  UserError as `read_points`, and where fewer than two rows are kept
    """
    filters = [_filter(text) for text in keep]
    extra = tuple(dict.fromkeys(name for name, _ in filters if name not in (*columns, *positive, *words)))
    optional = tuple(name for name in (*positive, *words) if name not in columns)
    points = read_points(
        path, (*columns, *extra), positive, optional, (*words, *extra), keep=_kept(path, filters, FEWEST)
    )
    return points.drop(columns=list(extra))


def _kept(path: Path | str, filters: list[tuple[str, list[str]]], fewest: int) -> Callable[[list[str], Rows], Rows]:
    """The rows that pass all filters, before anything else is read of them."""

    def keep(header: list[str], rows: Rows) -> Rows:
        for column, values in filters:
            place = header.index(column)
            rows = [row for row in rows if _holds(row[1][place], values)]
            if len(rows) < fewest:
                left = "1 row is" if len(rows) else "no row is"
                raise UserError(f"{path}: {left} left whose {column} is {_words(values, 'or')}; change --keep")
        return rows

    return keep


def _holds(cell: str, values: list[str]) -> bool:
    """Whether a cell holds one of the values: the same word, or the same number."""
    number = _value(cell)
    return cell in values or (number is not None and number in map(_value, values))


def _value(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _called(name: str, header: list[str], given: dict[str, str]) -> str:
    """What the file calls a column: as given, by its own name, by another usual name."""
    if name in given:
        return given[name]
    return next((other for other in (name, *ALSO.get(name, ())) if other in header), name)


def _filter(text: str) -> tuple[str, list[str]]:
    column, equals, values = text.partition("=")
    wanted = [value.strip() for value in values.split(",") if value.strip()]
    if not (column.strip() and equals and wanted):
        raise UserError(f"--keep: found {text!r}; expected COLUMN=VALUE,VALUE")
    return column.strip(), wanted


def _words(names, last: str = "and") -> str:
    *first, end = map(str, names)
    return f"{', '.join(first)} {last} {end}" if first else end


def read_curves(path: Path | str, columns: str, keep: list[str], along: tuple[str, ...]) -> pd.DataFrame:
    """Evaluation curves: run, seed, val_loss, the columns `along` (step, samples), and where the file has them
    samples, lr_schedule, model_size; every curve ascends in along[0].

    A file without a column `seed` has a run per name, and `NAME-s43` is a further seed of `NAME`, as in this project.

    raises  UserError as `read`, and for two evaluations of a run at one point
    """
    optional = tuple(name for name in ("samples", "lr_schedule", "model_size", "seed") if name not in along)
    curves = read(path, columns, keep, ("run", *along, "val_loss"), optional, positive=("val_loss",))
    if "seed" not in curves:
        curves["seed"] = curves["run"].str.extract(r"-s(\d+)$")[0].astype(float).fillna(-1)  # -1: the name says none
        curves["run"] = curves["run"].map(base_name)
    twice = curves[curves.duplicated(["run", "seed", along[0]])]
    if len(twice):
        run, at = twice.iloc[0][["run", along[0]]]
        raise UserError(
            f"{path}: run {run} has two evaluations at {along[0]} {at:.10g}; expected one: "
            "give the seeds in a column seed, or remove one of the rows"
        )
    order = {name: place for place, name in enumerate(curves["run"].drop_duplicates())}
    curves = curves.assign(order=curves["run"].map(order)).sort_values(["order", "seed", along[0]], ignore_index=True)
    return curves.drop(columns="order")


def plain(content):
    """For JSON: numpy's numbers as Python's, what is not finite as null."""
    if isinstance(content, dict):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [plain(value) for value in content]
    if hasattr(content, "tolist"):
        return plain(content.tolist())
    return None if isinstance(content, float) and not math.isfinite(content) else content
