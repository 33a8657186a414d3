"""Read the table of a folder of media: CSV with a header, or JSONL, one row per sample.

Columns: `file` (relative to the folder; none for text) and one of the forms below; `prompt` may replace the
source's prompt in a row. Imported while Snakemake parses the Snakefile: standard library only.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

from fvlm.errors import UserError

FORMS = (("messages",), ("question", "chosen", "rejected"), ("question", "answer"), ("caption",))
SURPLUS = ""  # where values of a CSV row stand that no column is left for
FORMS_TEXT = "`caption`, or `question` and `answer`, or `question`, `chosen` and `rejected`, or `messages`"


@dataclass(frozen=True)
class Row:
    """One sample of a table.

    number      position in the whole table, from 0, blank lines not counted
    file        as the table says, or None
    text        one of {"caption"}, {"user", "assistant"}, {"user", "chosen", "rejected"}, {"messages"}
    prompt      this row's own prompt, or None
    problem     why the row cannot be used, or None
    """

    number: int
    file: str | None
    text: dict
    prompt: str | None
    problem: str | None


def read_rows(folder: Path | str, table: str, start: int = 0, stop: int | None = None) -> list[Row]:
    """Rows [start, stop) of a table, or all; a row that lacks something is kept with its `problem`.

    raises      UserError if the folder, the table or a column is missing, or a line of these is no JSON object
    """
    rows, parse = _open(Path(folder), table)
    return [_row(number, parse(row)) for number, row in islice(enumerate(rows), start, stop)]


def count_rows(folder: Path | str, table: str) -> int:
    """How many rows `read_rows` gives; only the columns are looked at.

    raises      UserError if the folder, the table or a column is missing
    """
    return sum(1 for _ in _open(Path(folder), table)[0])


def _find(folder: Path, table: str) -> Path:
    path = folder / table
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}; expected one that holds {table!r}; correct the path")
    if not path.is_file():
        raise UserError(f"{folder}: no table {table!r}; write it, with columns `file` and {FORMS_TEXT}")
    if path.suffix not in (".csv", ".jsonl"):
        raise UserError(f"{path}: a table ends in .csv or .jsonl; rename or convert it")
    return path


def _open(folder: Path, table: str) -> tuple[Iterator, Callable[..., dict]]:
    """The rows as they stand in the file, and what makes a dict of one: costly, so only for rows that are asked for."""
    path = _find(folder, table)
    rows = _csv_rows(path) if path.suffix == ".csv" else _jsonl_lines(path)
    first = next(rows, None)
    if first is None:
        return iter(()), dict
    if path.suffix == ".csv":
        _check_columns(path, first)
        return rows, lambda row: {**dict(zip(first, row, strict=False)), SURPLUS: row[len(first) :]}
    _check_columns(path, list(_parse(path, first)))
    return chain([first], rows), partial(_parse, path)


def _csv_rows(path: Path) -> Iterator[list[str]]:
    """The header, then the rows, without blank lines."""
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            yield from filter(None, reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: after line {reader.line_num}: {error}; expected CSV in UTF-8") from error


def _jsonl_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1, without blank ones."""
    with path.open("rb") as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if not line.isspace())


def _parse(path: Path, numbered: tuple[int, bytes]) -> dict:
    number, line = numbered
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: line {number} is no JSON ({error}); mend or delete it") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}: line {number} is no JSON object; expected {{...}}")
    return record


def _check_columns(path: Path, columns: list[str]) -> None:
    """The header, or the first row, shows which columns there are; a later row that lacks one is a bad row."""
    found = ", ".join(columns)
    if not any(all(column in columns for column in form) for form in FORMS):
        raise UserError(f"{path}: columns are {found}; expected {FORMS_TEXT}; rename or add a column")
    if not {"file", "messages", "answer"}.intersection(columns):
        raise UserError(f"{path}: no column `file` in {found}; add it, with paths relative to the folder")


def _row(number: int, record: dict) -> Row:
    file, prompt = record.get("file") or None, record.get("prompt") or None
    problem, text = None, {}
    if not _has_bytes(record):
        problem, file, prompt = "half a character, which UTF-8 cannot hold", None, None
    elif record.get(SURPLUS):
        problem = "more values than columns; put a text that holds a comma in quotes"
    elif file is not None and not isinstance(file, str):
        problem, file = "`file` is no text", None
    elif prompt is not None and not isinstance(prompt, str):
        problem = "`prompt` is no text"
    else:
        text, problem = _text(record)
    return Row(number, file, text, prompt, problem)


def _has_bytes(record: dict) -> bool:
    """Whether it can be written as UTF-8: a JSON text may escape one half of a surrogate pair."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(record: dict) -> tuple[dict, str | None]:
    """The text of a row in one of the four forms, or what is wrong with it."""
    form = next((form for form in FORMS if all(record.get(column) for column in form)), None)
    if form is None:
        return {}, f"no text: expected {FORMS_TEXT}, not empty"
    if form == ("messages",):
        return {"messages": record["messages"]}, _messages_problem(record["messages"])
    values = {column: record[column] for column in form}
    for column, value in values.items():
        if not isinstance(value, str) or not value.strip():
            return {}, f"`{column}` is empty or no text"
    if "caption" in values:
        return {"caption": values["caption"]}, None
    user = {"user": values.pop("question")}
    return user | ({"assistant": values["answer"]} if "answer" in values else values), None


def _messages_problem(messages: object) -> str | None:
    """What is wrong with a conversation, or None."""
    if not isinstance(messages, list):
        return "`messages` is no list"
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return "`messages`: expected a list of {role, content}"
        if message.get("role") not in ("system", "user", "assistant"):
            return f"`messages`: role {message.get('role')!r} is none of system, user, assistant"
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        return "`messages`: no assistant says anything"
    return None
