"""A bare folder without a table: every file in it is an input, sorted by name, except names that start with a dot.

A `.txt` beside a file of the same stem is its caption. A file without a caption still gives frames and a line in the
ledger, but an index leaves its sample out, since it has no answer. A file that is no video or image is rejected when it
is decoded.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from fvlm.data.decode.media import MAX_TEXT_BYTES
from fvlm.data.readers.folder import media_of
from fvlm.data.readers.row import BadRow, Row, checked
from fvlm.errors import UserError

ALL = "."


def rows(folder: Path, table: str, start: int = 0, stop: int | None = None) -> Iterator[Row]:
    for number, name in islice(enumerate(inputs(folder, table)), start, stop):
        readable = name.encode("utf-8", "backslashreplace").decode()
        if readable != name:
            yield Row(number, (media_of(readable),), {}, problem="the name of the file is not UTF-8; rename it")
            continue
        try:
            caption = _caption(sidecar(folder / name))
        except BadRow as error:
            yield Row(number, (media_of(name),), {}, problem=str(error))
            continue
        row = Row(number, (media_of(name),), {"caption": caption})
        yield checked(row) if caption else row


def count(folder: Path, table: str) -> int:
    return len(inputs(folder, table))


def files_of(folder: Path, table: str) -> list[Path]:
    """The inputs and their captions."""
    paths = [folder / name for name in inputs(folder, table)]
    return [*paths, *filter(None, map(sidecar, paths))]


def inputs(folder: Path, table: str = ALL) -> list[str]:
    """All files below the folder, relative to it, sorted, without captions and names that start with a dot.

    A folder that several links point to is read once.

    table       the name of the only input; ALL: every file

    raises      UserError if the folder does not exist, or a folder in it cannot be read
    """
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}; correct the path")
    if table != ALL:
        return [table]
    names, visited = [], set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(here)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # the same order on every machine
        stems = {Path(name).stem for name in files if not name.endswith(".txt")}
        for name in files:
            caption = name.endswith(".txt") and Path(name).stem in stems
            if not name.startswith(".") and not caption:
                names.append(Path(here, name).relative_to(folder).as_posix())
    return sorted(names)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: {error.strerror}; every folder of the source must be readable")


def sidecar(path: Path) -> Path | None:
    """The file with the caption of an input, or None if there is none."""
    text = path.with_suffix(".txt")
    return text if path.suffix != ".txt" and os.path.isfile(text) else None


def _caption(text: Path | None) -> str:
    """The caption in a file; raises BadRow."""
    if text is None:
        return ""
    try:
        if text.stat().st_size > MAX_TEXT_BYTES:
            raise BadRow(f"caption {text.name} is larger than {MAX_TEXT_BYTES >> 20} MiB; shorten or delete it")
        return text.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRow(f"caption {text.name} cannot be read as UTF-8; save it as UTF-8, or delete it") from error
