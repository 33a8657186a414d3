"""Records of tables: CSV, JSONL, JSON and Parquet, in one file or in several, one after the other.

A record is a dict. Records before `start` are skipped as cheaply as the format allows: in Parquet by row groups, in CSV
and JSONL without making dicts. A JSON array is always parsed completely. pyarrow is loaded only for Parquet.
"""

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import IO

from fvlm.data.readers.row import PROBLEM, SURPLUS
from fvlm.errors import BROKEN, UserError, first_line

HINT = "add it, or name another one with `table`"
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
SUFFIXES = (".csv", ".jsonl", ".json", ".parquet")
PARQUET_BATCH = 64  # rows in memory at a time; each may hold images
BATCH_BYTES = 256 << 20  # fewer rows at a time if each may repeat the largest value of a dictionary
MOST_VALUES = 10_000  # values per row, on average; a few bytes of Parquet can repeat a value 10^9 times
LONGEST_LINE = 64 << 20  # bytes or characters; a line is read at once
LONGEST_HEADER = 1 << 16  # bytes that are searched for the separator of a CSV
LARGEST_JSON = 2 << 30  # bytes; parsing needs several times as much memory
MOST_ROWS = 10**9  # of a Parquet file; shards are planned by the number in its header

Expand = Callable[[dict], list[dict]]


def expand_name(name: str) -> list[str] | None:
    """The names of a range such as x/{00000..00099}.tar, in order; None if the name holds no range."""
    match = RANGE.search(name)
    if match is None:
        return None
    first, last = match.groups()
    return [name.replace(match[0], str(i).zfill(len(first))) for i in range(int(first), int(last) + 1)]


def is_pattern(table: str) -> bool:
    """Return whether the name of a table stands for several files."""
    return RANGE.search(table) is not None or any(mark in table for mark in "*?[")


def find(folder: Path, table: str, hint: str = HINT, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The files of a table, at least one: one file, the files of a range, or those that match a wildcard, sorted.

    raises      UserError
    """
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}; expected a folder with {table!r}; correct the path")
    if Path(table).is_absolute():
        raise UserError(f"table {table!r}: give its name relative to the folder {str(folder)!r}")
    names = expand_name(table) if is_pattern(table) else [table]
    paths = sorted(folder.glob(table)) if names is None else [folder / name for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        name = str(missing[0].relative_to(folder)) if missing else table
        raise UserError(f"{folder}: no table {name!r}; {hint}")
    for path in paths:
        if path.suffix not in suffixes:
            raise UserError(f"{path}: the name of a table ends in {', '.join(suffixes)}; rename or convert it")
    return paths


def records(
    paths: list[Path], start: int = 0, stop: int | None = None, expand: Expand | None = None
) -> Iterator[tuple[int, Path, dict]]:
    """(number, file, content) of the records [start, stop), numbered through all files.

    expand      turns one record into several, except in Parquet; then the records before `start` are parsed too
    raises      UserError if a file is not in the format of its name
    """
    number = 0
    for path in paths:
        if stop is not None and number >= stop:
            return
        if path.suffix == ".parquet":
            rows = _parquet_rows(path)
            last = rows if stop is None else min(rows, stop - number)
            for i, record in _parquet(path, max(0, start - number), last):
                yield number + i, path, record
            number += rows
            continue
        for parse in _parsers(path):
            if expand is None:
                if number >= start:
                    yield number, path, parse()
                number += 1
            else:
                for record in expand(parse()):
                    if number >= start and (stop is None or number < stop):
                        yield number, path, record
                    number += 1
            if stop is not None and number >= stop:
                return


def count(paths: list[Path], expand: Expand | None = None) -> int:
    """Return the number of records; raises UserError like `records`."""
    total = 0
    for path in paths:
        if path.suffix == ".parquet":
            total += _parquet_rows(path)
        else:
            total += sum(1 if expand is None else len(expand(parse())) for parse in _parsers(path))
    return total


def columns(path: Path) -> list[str]:
    """The columns of a table: its header, or the names in its first record; empty if it has no record."""
    if path.suffix == ".csv":
        return next(_csv_rows(path), [])
    return next((list(record) for _, _, record in records([path], 0, 1)), [])


def _parsers(path: Path) -> Iterator[Callable[[], dict]]:
    """For each record a function that parses it, so that only the needed records are parsed."""
    if path.suffix == ".csv":
        rows = _csv_rows(path)
        header = next(rows, [])
        for row in rows:
            if row[-1] is PROBLEM:
                yield lambda row=row: {PROBLEM: row[0]}
                continue
            yield lambda row=row: {**dict(zip(header, row, strict=False)), SURPLUS: row[len(header) :]}
    elif path.suffix == ".jsonl" or _has_objects_in_lines(path):
        for number, line in _lines(path):
            yield lambda number=number, line=line: _parse(line, path, f"line {number}")
    else:
        for number, record in enumerate(_json_records(path, path.stat().st_mtime_ns)):
            yield lambda number=number, record=record: _object(record, path, f"entry {number}")


def _csv_rows(path: Path) -> Iterator[list[str]]:
    """The header and the rows, without blank lines."""
    csv.field_size_limit(LONGEST_LINE)
    with path.open("rb") as file:
        head = file.read(LONGEST_HEADER)
    encoding = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    header = head.decode(encoding, "replace").partition("\n")[0]
    # Spreadsheets of some languages separate by semicolons. A blank behind each comma is no part of a text.
    delimiter = max(",;\t", key=re.sub('"[^"]*"', "", header).count)
    with path.open(newline="", encoding=encoding) as file:
        reader = csv.reader(
            _limited(file, path), strict=True, delimiter=delimiter, skipinitialspace=f"{delimiter} " in header
        )
        first = True
        while True:
            try:
                row = next(reader, None)
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: after line {reader.line_num}: {error}; expected CSV in UTF-8") from error
            except csv.Error as error:
                problem = f"{path.name}: line {reader.line_num}: {error}"
                if first or "unexpected end" in str(error):  # a quote without an end has taken in all later rows
                    raise UserError(f"{path}: after line {reader.line_num}: {error}; expected CSV in UTF-8") from error
                row = [f'{problem}; write a quote inside a quoted text as ""', PROBLEM]
            if row is None:
                return
            if row:
                yield [name.strip() for name in row] if first else row
                first = False


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1, without blank ones."""
    with path.open("rb") as file:
        yield from ((number, line) for number, line in enumerate(_limited(file, path), 1) if not line.isspace())


def _limited(file: IO, path: Path) -> Iterator:
    """Lines of a file; raises UserError for a line that is too long, without reading all of it."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise UserError(
                f"{path}: line {number} is longer than {LONGEST_LINE >> 20} MiB; expected one record per line: correct "
                "or delete it"
            )
        yield line


def _has_objects_in_lines(path: Path) -> bool:
    """Return whether a .json file is JSONL, as in some datasets."""
    if path.suffix != ".json":
        return False
    with path.open("rb") as file:
        first = file.readline(1 << 20).strip()
        if not first.startswith(b"{") or not first.endswith(b"}") or not file.read(1):
            return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _parse(text: bytes, path: Path, where: str) -> dict:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {where} is not valid JSON ({error}); correct or delete it") from error
    return _object(record, path, where)


def _object(record: object, path: Path, where: str) -> dict:
    if not isinstance(record, dict):
        raise UserError(f"{path}: {where} is not a JSON object; expected {{...}}")
    return record


@lru_cache(maxsize=1)
def _json_records(path: Path, changed_ns: int) -> list:
    """The entries of a JSON array, or a single object; cached, because each shard needs them again."""
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise UserError(f"{path}: {size >> 20} MiB of JSON, at most {LARGEST_JSON >> 20}; convert it to .jsonl")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); download or write it again") from error
    return content if isinstance(content, list) else [content]


def _open_parquet(path: Path):
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (*BROKEN, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not a Parquet file ({first_line(error)}); download or write it again") from error


def _parquet_rows(path: Path) -> int:
    with _open_parquet(path) as file:
        count = file.metadata.num_rows
        if not 0 <= count <= MOST_ROWS:
            raise UserError(f"{path}: {count} rows in its header, expected at most {MOST_ROWS:,}; split or replace it")
        return count


def _parquet(path: Path, start: int, stop: int) -> Iterator[tuple[int, dict]]:
    """Rows [start, stop) with their numbers; only the row groups with these rows are read."""
    import pyarrow

    with _open_parquet(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = list(accumulate(sizes))
        groups = [i for i, (size, end) in enumerate(zip(sizes, ends, strict=True)) if end > start and end - size < stop]
        if not groups:
            return
        first = ends[groups[0]] - sizes[groups[0]]
        rows = min(_rows_at_a_time(path, file.metadata.row_group(group), group) for group in groups)
        try:
            for batch in file.iter_batches(rows, row_groups=groups):
                low, high = max(start - first, 0), min(stop - first, batch.num_rows)
                for i, record in enumerate(batch.slice(low, max(high - low, 0)).to_pylist(), low):
                    yield first + i, record
                first += batch.num_rows
        except (*BROKEN, pyarrow.ArrowException) as error:
            raise UserError(f"{path}: damaged ({first_line(error)}); download or write it again") from error


def _rows_at_a_time(path: Path, about, group: int) -> int:
    """Return how many rows of a row group may be in memory at the same time.

    about       the group's metadata
    raises      UserError for a group with far more values than rows
    """
    columns = [about.column(i) for i in range(about.num_columns)]
    for column in columns:
        if column.num_values > MOST_VALUES * max(about.num_rows, 100):
            raise UserError(
                f"{path}: row group {group} has {column.num_values:,} values of {column.path_in_schema} in "
                f"{about.num_rows} rows; split the rows, or remove the column"
            )
    repeated = sum(column.total_uncompressed_size for column in columns if column.has_dictionary_page)
    return max(1, min(PARQUET_BATCH, BATCH_BYTES // max(1, repeated)))
