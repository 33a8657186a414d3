"""Your own folder: media files and a table with one row per sample.

Columns: `file` (relative to the folder; none for text), or `files` for several images of one sample, and one of FORMS.
`prompt` replaces the source's prompt in a row. `video` names the video that a clip was cut from, so that all clips of
the video are held out together. `options` lists the answers to choose from, of which `answer` is one, and `task` names
the kind of question, for a benchmark.
"""

from pathlib import Path, PurePosixPath

from fvlm.data.decode.media import IMAGE_SUFFIXES, Media
from fvlm.data.readers.row import BadRow, Place, Sample, known, messages_problem, string, with_joined_parts
from fvlm.data.readers.tables import columns
from fvlm.errors import UserError

FORMS = (("messages",), ("question", "chosen", "rejected"), ("question", "answer"), ("caption",))
FORMS_TEXT = "`caption`, or `question` and `answer`, or `question`, `chosen` and `rejected`, or `messages`"
MOST_OPTIONS = 26  # each has a letter
HINT = f"write it, with columns `file` and {FORMS_TEXT}"


def media_of(name: str) -> Media:
    """The media of a file name; `./a.mp4` and `a.mp4` are the same file, so that both are held out or neither."""
    return Media(PurePosixPath(name).as_posix(), image=name.lower().endswith(IMAGE_SUFFIXES))


def folder(record: dict, place: Place) -> Sample:
    record = {name.lower(): value for name, value in record.items()}
    place.media = _media(record)
    prompt = record.get("prompt") or None
    if prompt is not None and not isinstance(prompt, str):
        raise BadRow("`prompt` is not a text")
    text, extra = _text(record), known(video=record.get("video") or None)
    return Sample(text, extra | _options(record, text), prompt)


def _options(record: dict, text: dict) -> dict:
    """The options of a question, if they hold its answer, the answer's position, and the task."""
    options = record.get("options")
    if not isinstance(options, list) or not 2 <= len(options) <= MOST_OPTIONS or text.get("assistant") not in options:
        return {}
    correct = options.index(text["assistant"])
    return {"options": options, "correct": correct} | known(task=record.get("task") or None)


def _media(record: dict) -> tuple[Media, ...]:
    files = record.get("files") or [record["file"]] if record.get("files") or record.get("file") else []
    if not isinstance(files, list) or not all(isinstance(file, str) and file for file in files):
        raise BadRow("`files` is not a list of names" if record.get("files") else "`file` is not a text")
    return tuple(media_of(file) for file in files)


def _text(record: dict) -> dict:
    """The text of a row in one of the four forms."""
    form = next((form for form in FORMS if all(record.get(column) for column in form)), None)
    if form is None:
        raise BadRow(f"no text: expected {FORMS_TEXT}, not empty")
    if form == ("messages",):
        messages = with_joined_parts(record["messages"], "messages")
        if messages_problem(messages):
            return {"messages": messages}  # `checked` reports the problem
        return {"messages": [{name: message[name] for name in ("role", "content")} for message in messages]}
    values = {column: string(record, column) for column in form}
    names = {"question": "user", "answer": "assistant"}
    return {names.get(column, column): value for column, value in values.items()}


def check(path: Path) -> None:
    """Refuse a table without the needed columns in its header or first row; raises UserError."""
    names = [name.lower() for name in columns(path)]
    if not names:
        return
    listed = ", ".join(names)
    if not any(all(column in names for column in form) for form in FORMS):
        raise UserError(f"{path}: columns are {listed}; expected {FORMS_TEXT}; rename or add a column")
    if not {"file", "files", "messages", "answer"}.intersection(names):
        raise UserError(f"{path}: no column `file` in {listed}; add it, with paths relative to the folder")
