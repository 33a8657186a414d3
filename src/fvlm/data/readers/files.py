"""A bare folder: every file below it is an input, in the order of their names; no table.

A `.txt` beside a file of the same stem is its caption. A file without one still gives frames and a line in the ledger,
but nothing to train on: its sample has no answer, and an index leaves it out. What is no video or image is found out by
decoding it, and rejected. Names that start with a dot are no inputs.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from fvlm.data.decode.media import MAX_TEXT_BYTES
from fvlm.data.readers.folder import media_of
from fvlm.data.readers.row import BadRow, Row, checked
from fvlm.errors import UserError


def rows(folder: Path, table: str, start: int = 0, stop: int | None = None) -> Iterator[Row]:
    for number, name in islice(enumerate(inputs(folder)), start, stop):
        readable = name.encode("utf-8", "backslashreplace").decode()
        if readable != name:
            yield Row(number, (media_of(readable),), {}, problem="the file's name is not in UTF-8; rename it")
            continue
        try:
            caption = _caption(sidecar(folder / name))
        except BadRow as error:
            yield Row(number, (media_of(name),), {}, problem=str(error))
            continue
        except (OSError, UnicodeDecodeError):
            problem = "its caption, the .txt beside it, cannot be read as UTF-8; save it so, or delete it"
            yield Row(number, (media_of(name),), {}, problem=problem)
            continue
        row = Row(number, (media_of(name),), {"caption": caption})
        yield checked(row) if caption else row


def count(folder: Path, table: str) -> int:
    return len(inputs(folder))


def files_of(folder: Path, table: str) -> list[Path]:
    """The inputs and their captions."""
    paths = [folder / name for name in inputs(folder)]
    return [*paths, *filter(None, map(sidecar, paths))]


def inputs(folder: Path) -> list[str]:
    """All files below the folder, relative to it, without captions and names that start with a dot; sorted.

    A folder that links lead to several times is one.

    raises      UserError if there is no folder, or one may not be read
    """
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}; correct the path")
    found, visited = [], set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(here)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # the same order everywhere
        stems = {Path(name).stem for name in files if not name.endswith(".txt")}
        for name in files:
            caption = name.endswith(".txt") and Path(name).stem in stems
            if not name.startswith(".") and not caption:
                found.append(Path(here, name).relative_to(folder).as_posix())
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: {error.strerror}; every folder of the source must be readable")


def sidecar(path: Path) -> Path | None:
    """The regular file beside an input that holds its caption, if there is one."""
    text = path.with_suffix(".txt")
    return text if path.suffix != ".txt" and os.path.isfile(text) else None


def _caption(text: Path | None) -> str:
    """raises OSError, UnicodeDecodeError; BadRow for one that is too long, before it is read"""
    if text is None:
        return ""
    if text.stat().st_size > MAX_TEXT_BYTES:
        raise BadRow(f"its caption, the .txt beside it, is over {MAX_TEXT_BYTES >> 20} MiB; shorten or delete it")
    return text.read_text(encoding="utf-8-sig").strip()
