"""One row of a source, made from one record by the dataset's reader, and the checks that all rows pass."""

import json
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fvlm.data.decode.media import Media

MAX_IMAGES = 64  # a sample's frames
SURPLUS = ""  # key of the values of a CSV row that have no column
PROBLEM = "\0problem"  # key of the reason why a CSV row cannot be read
ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
# Marks that datasets put at the place of an image or a video; here visual tokens always come before the text.
PLACEHOLDER = r"<\|?(?:image|video)(?:_pad)?\|?>|<\|vision_(?:start|end)\|>"
PLACEHOLDERS = re.compile(rf"[ \t]*(?:{PLACEHOLDER})(?:\s*(?:{PLACEHOLDER}))*[ \t]*")


@dataclass(frozen=True)
class Row:
    """One sample of a source.

    number      position in the source, from 0
    media       none for text; one video; one or several images (at most 64)
    text        one of {"caption"}, {"user", "assistant"}, {"user", "chosen", "rejected"}, {"messages"}
    prompt      this row's own prompt for its caption, or None
    problem     why the row cannot be used, or None
    extra       further entries of the sample's json: id, options, ...
    reason      of a problem, one of `media.REASONS`
    """

    number: int
    media: tuple["Media", ...]
    text: dict
    prompt: str | None = None
    problem: str | None = None
    extra: dict = field(default_factory=dict)
    reason: str = "bad_row"

    @property
    def file(self) -> str | None:
        return self.media[0].file if self.media else None


@dataclass(frozen=True)
class Sample:
    """The result of a reader for one record, apart from its files; the fields are those of `Row`."""

    text: dict
    extra: dict = field(default_factory=dict)
    prompt: str | None = None


class BadRow(Exception):
    """A record that gives no sample; `reason` is one of `media.REASONS`."""

    def __init__(self, message: str, reason: str = "bad_row") -> None:
        super().__init__(message)
        self.reason = reason


def in_any_form(folder: Path, name: str) -> Path:
    """The path of a file, or of one whose name differs only in its Unicode form if only that exists.

    A Mac stores e and an accent (NFD) where tables have one letter (NFC).
    """
    forms = [folder / name, *(folder / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    return next((path for path in forms if os.path.exists(path)), forms[0])


@dataclass
class Place:
    """The place of a record: the source's folder, the table in it, and the record's files.

    media       set by the reader as soon as it knows them, so that a bad row names its files
    """

    folder: Path
    table: Path
    media: tuple["Media", ...] = ()

    def beside(self, name: str) -> str:
        """A name relative to the table, made relative to the folder; an absolute name does not change."""
        path = self.table.parent / name
        return (path.relative_to(self.folder) if path.is_relative_to(self.folder) else path).as_posix()

    def find(self, *names: str) -> str:
        """The first of these names, relative to the folder, that exists; if none does, the first name."""
        return next((name for name in names if os.path.exists(in_any_form(self.folder, name))), names[0])


def row_of(number: int, make: Callable[[dict, Place], Sample], record: dict, folder: Path, table: Path) -> Row:
    """Return the row that `make` makes of a record of a table, or a row with a problem."""
    if PROBLEM in record:
        return Row(number, (), {}, problem=record[PROBLEM])
    if record.get(SURPLUS):
        return Row(number, (), {}, problem="more values than columns; put a text that holds a comma in quotes")
    place = Place(folder, table)
    try:
        sample = make(record, place)
    except BadRow as error:
        return checked(Row(number, place.media, {}, problem=str(error), reason=error.reason))
    return checked(Row(number, place.media, sample.text, sample.prompt, extra=sample.extra))


def checked(row: Row) -> Row:
    """Return the row without placeholders in its text, or with its problem."""
    text = without_placeholders(row.text) if row.media else row.text
    problem = row.problem or _media_problem(row) or text_problem(text)
    row = Row(row.number, row.media, {}, None, problem, {}, row.reason) if problem else replace(row, text=text)
    try:
        files = [media.file for media in row.media]
        json.dumps([row.problem, row.text, row.prompt, row.extra, files], ensure_ascii=False).encode()
    except UnicodeEncodeError:  # JSON may escape half of a surrogate pair
        return Row(row.number, (), {}, problem="half a character, which UTF-8 cannot hold")
    return row


def _media_problem(row: Row) -> str | None:
    if len(row.media) > MAX_IMAGES:
        return f"{len(row.media)} images, a sample may have {MAX_IMAGES}"
    if len(row.media) > 1 and not all(media.image for media in row.media):
        return f"{len(row.media)} files with a video among them; a sample is one video, or images"
    return None


def text_problem(text: dict) -> str | None:
    """Return the problem of a sample's text, or None."""
    if "messages" in text:
        return messages_problem(text["messages"])
    for name, value in text.items():
        if not isinstance(value, str) or not value.strip():
            return f"`{name}` is empty or not a text"
    return None if text else "no text"


def joined_parts(content: object) -> object:
    """Content as a list of parts {"type": "text", "text": ...}, joined with line breaks; any other content unchanged.

    raises      ValueError for a part that is no text, such as a picture, or for a list without parts
    """
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = repr(part.get("type")) if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"content is a list with a part of type {kind}; expected parts {{type: text, text}}")
    if not content:
        raise ValueError("content is an empty list")
    return "\n".join(part["text"] for part in content)


def with_joined_parts(messages: object, column: str) -> object:
    """Messages whose contents are texts; what is no list of messages is unchanged. Raises BadRow."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return messages
    try:
        return [
            {**message, **{key: joined_parts(message[key]) for key in ("content", "value") if key in message}}
            for message in messages
        ]
    except ValueError as error:
        raise BadRow(f"`{column}`: {error}") from error


def messages_problem(messages: object) -> str | None:
    """Return the problem of a conversation, or None."""
    if not isinstance(messages, list):
        return "`messages` is not a list"
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return "`messages`: expected a list of {role, content}"
        if message.get("role") not in ("system", "user", "assistant"):
            return f"`messages`: role {message.get('role')!r} is none of system, user, assistant"
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        return "`messages`: no message of the assistant has text"
    return None


def without_placeholders(text: dict) -> dict:
    """The text without marks such as `<image>` in the user's messages."""
    if "messages" in text and not messages_problem(text["messages"]):
        messages = [
            message if message["role"] == "assistant" else {**message, "content": _unmarked(message["content"])}
            for message in text["messages"]
        ]
        return {"messages": messages}
    if not isinstance(text.get("user"), str):
        return text
    text = {**text, "user": _unmarked(text["user"])}
    # A question that is only a mark asks for a caption, so the source's prompt replaces it.
    return {"caption": text["assistant"]} if not text["user"] and set(text) == {"user", "assistant"} else text


def _unmarked(text: str) -> str:
    def between(match: re.Match) -> str:
        after = text[match.end() : match.end() + 1]
        edge = (
            match.start() == 0 or text[match.start() - 1] == "\n" or after in ("", "\n", ".", ",", ";", ":", "?", "!")
        )
        return "" if edge else " "

    return PLACEHOLDERS.sub(between, text).strip() if PLACEHOLDERS.search(text) else text


def string(record: dict, column: str) -> str:
    """A text of a record that is not empty; raises BadRow."""
    value = record.get(column)
    if value is None:
        raise BadRow(f"`{column}` is missing")
    if not isinstance(value, str):
        raise BadRow(f"`{column}` is {type(value).__name__}, expected a text")
    if not value.strip():
        raise BadRow(f"`{column}` is empty")
    return value


def identity(record: dict, column: str) -> str:
    """A name or a whole number of a record, as text; raises BadRow."""
    value = record.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return string(record, column)


def known(**values: object) -> dict:
    """The values that are texts or whole numbers, as a dict for `extra`."""
    return {name: value for name, value in values.items() if isinstance(value, str | int)}


def conversation(turns: object, column: str) -> dict:
    """Turns as {from, value} or {role, content}: a single question and its answer, or `messages`.

    raises      BadRow
    """
    turns = with_joined_parts(turns, column)
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"`{column}` is not a list of turns, or is empty")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadRow(f"`{column}`: a turn is {type(turn).__name__}, expected {{from, value}} or {{role, content}}")
        role, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if not isinstance(role, str) or role not in ROLES:
            raise BadRow(f"`{column}`: role {role!r} is none of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise BadRow(f"`{column}`: the content of {role} is {type(content).__name__}, expected a text")
        messages.append({"role": ROLES[role], "content": content})
    if [message["role"] for message in messages] == ["user", "assistant"]:
        return {"user": messages[0]["content"], "assistant": messages[1]["content"]}
    return {"messages": messages}
