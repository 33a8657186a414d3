"""Read the table of a folder of media: CSV with a header, or JSONL, one row per sample.

Columns: `file` (relative to the folder; none for text) and one of the forms below; `prompt` may replace the
source's prompt in a row. Imported while Snakemake parses the Snakefile: standard library only.
"""

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fvlm.errors import UserError

FORMS = (("messages",), ("question", "chosen", "rejected"), ("question", "answer"), ("caption",))
FORMS_TEXT = "`caption`, or `question` and `answer`, or `question`, `chosen` and `rejected`, or `messages`"


@dataclass(frozen=True)
class Row:
    """One sample of a table.

    number      position in the table, from 0, blank lines not counted
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


def read_rows(folder: Path | str, table: str, stop: int | None = None) -> list[Row]:
    """All rows of a table, or the first `stop`; a row that lacks something is kept with its `problem`.

    raises      UserError if the folder, the table or a column is missing, or a line is no JSON object
    """
    return [_row(number, record) for number, record in _records(Path(folder), table, stop)]


def count_rows(folder: Path | str, table: str) -> int:
    """How many rows `read_rows` gives, without looking into them where the format allows."""
    path = _find(Path(folder), table)
    if path.suffix == ".csv":
        return sum(1 for _ in _records(Path(folder), table, None))
    with path.open("rb") as file:
        return sum(1 for line in file if not line.isspace())


def _find(folder: Path, table: str) -> Path:
    path = folder / table
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}; expected one that holds {table!r}; correct the path")
    if not path.is_file():
        raise UserError(f"{folder}: no table {table!r}; write it, with columns `file` and {FORMS_TEXT}")
    if path.suffix not in (".csv", ".jsonl"):
        raise UserError(f"{path}: a table ends in .csv or .jsonl; rename or convert it")
    return path


def _records(folder: Path, table: str, stop: int | None) -> Iterator[tuple[int, dict]]:
    path = _find(folder, table)
    read = _read_csv if path.suffix == ".csv" else _read_jsonl
    for number, record in enumerate(read(path)):
        if number == 0:
            _check_columns(path, record)
        if number == stop:
            return
        yield number, record


def _read_csv(path: Path) -> Iterator[dict]:
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            yield from reader
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: after line {reader.line_num}: {error}; expected CSV in UTF-8") from error


def _read_jsonl(path: Path) -> Iterator[dict]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"{path}: line {number} is no JSON ({error}); mend or delete it") from error
            if not isinstance(record, dict):
                raise UserError(f"{path}: line {number} is no JSON object; expected {{...}}")
            yield record


def _check_columns(path: Path, record: dict) -> None:
    """The first row shows which columns there are; a later row that lacks one is a bad row."""
    if not any(all(column in record for column in form) for form in FORMS):
        found = ", ".join(str(column) for column in record)
        raise UserError(f"{path}: columns are {found}; expected {FORMS_TEXT}; rename or add a column")
    if "file" not in record and "messages" not in record and "answer" not in record:
        found = ", ".join(str(column) for column in record)
        raise UserError(f"{path}: no column `file` in {found}; add it, with paths relative to the folder")


def _row(number: int, record: dict) -> Row:
    file, prompt = record.get("file") or None, record.get("prompt") or None
    problem, text = None, {}
    if file is not None and not isinstance(file, str):
        problem, file = "`file` is no text", None
    elif prompt is not None and not isinstance(prompt, str):
        problem = "`prompt` is no text"
    else:
        text, problem = _text(record)
    return Row(number, file, text, prompt, problem)


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
