"""Reading and writing the study's tables: written whole or not at all, read with their columns checked."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS, FLAGS, NEW, TEXT
from fvlm.errors import UserError


def check_out(out: Path | str, *read: Path | str, option: str = "--out") -> None:
    """Refuse an output that is a folder, or one of the files that were read.

    raises  UserError
    """
    if not str(out) or Path(out).is_dir():
        raise UserError(f"{option} {out or repr('')}: expected the name of a file, not a folder")
    if any(Path(out).resolve() == Path(path).resolve() for path in read):
        raise UserError(f"{option} {out}: this is the file that was read; expected another name")


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`, with the same suffix; renamed to `path` when the block ends without
    error.

    raises  UserError where it cannot be written
    """
    path = Path(path)
    beside = path.parent / f".{path.stem}.{os.getpid()}{path.suffix}"
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def write_table(frame: pd.DataFrame, path: Path | str, digits: int = 8) -> None:
    """Write a table as CSV with `digits` significant digits; an empty cell where there is no value."""
    with replacing(path) as beside:
        write_csv(frame, beside, digits)


def write_csv(frame: pd.DataFrame, path: Path, digits: int = 8) -> None:
    """As `write_table`, at once."""
    frame.to_csv(path, index=False, float_format=f"%.{digits}g", lineterminator="\n")


def read_csv(path: Path | str, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV that must have `columns`; only an empty cell counts as missing ('none' is a word here).

    raises  UserError if the file is missing, is no table, or lacks a column
    """
    try:
        _refuse_null(path)
        frame = pd.read_csv(
            path,
            keep_default_na=False,
            na_values=[""],
            low_memory=False,
            dtype=dict.fromkeys(("key", "group", "run", "run_id", "source"), str),
        )
    except OSError as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {why}; expected a table with {', '.join(columns[:4])}, ...") from error
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: this is no CSV table ({error}); delete it and make it again") from error
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(map(repr, missing))}; found {', '.join(frame.columns[:12])}; "
            "the table is from another version: delete it and make it again"
        )
    return frame


def _refuse_null(path: Path | str) -> None:
    """pandas would drop null bytes, and with them what makes a word another."""
    with open(path, "rb") as file:
        if any(b"\0" in part for part in iter(lambda: file.read(1 << 20), b"")):
            raise UserError(f"{path}: this is no CSV table (it holds null bytes); delete it and make it again")


def read_table(folder: Path | str, name: str) -> pd.DataFrame:
    """Table `name` of `folder` with the catalog's columns; text is never missing, flags are booleans."""
    new = NEW.get(name, ())
    frame = read_csv(Path(folder) / f"{name}.csv", tuple(column for column in COLUMNS[name] if column not in new))
    for column in new:
        frame[column] = frame.get(column, np.nan)
    if name == "runs" and frame["run"].duplicated().any():
        twice = frame.loc[frame["run"].duplicated(), "run"].iloc[0]
        raise UserError(f"{Path(folder) / name}.csv: run {twice} is there twice; give each run one row")
    for column in TEXT.get(name, ()):
        frame[column] = frame[column].astype(object).where(frame[column].notna(), "").astype(str)
    for column in FLAGS.get(name, ()):
        frame[column] = frame[column].astype(str).str.lower().isin(("true", "1", "1.0"))
    return frame


def read_tables(folder: Path | str, names: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    return {name: read_table(folder, name) for name in names}
