"""A bare folder: every file below it is an input, in the order of their names; no table.

A `.txt` beside a file of the same stem is its caption. A file without one still gives frames and a line in the ledger,
but nothing to train on: its sample has no answer, and an index leaves it out. What is no video or image is found out by
decoding it, and rejected. Names that start with a dot are no inputs.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from fvlm.data.readers.folder import media_of
from fvlm.data.readers.row import Row, checked
from fvlm.errors import UserError


def rows(folder: Path, table: str, start: int = 0, stop: int | None = None) -> Iterator[Row]:
    for number, name in islice(enumerate(inputs(folder)), start, stop):
        caption = sidecar(folder / name)
        readable = name.encode("utf-8", "backslashreplace").decode()
        if readable != name:
            yield Row(number, (media_of(readable),), {}, problem="the file's name is not in UTF-8; rename it")
        elif caption is None:
            yield Row(number, (media_of(name),), {"caption": ""})
        else:
            yield checked(Row(number, (media_of(name),), {"caption": caption}))


def count(folder: Path, table: str) -> int:
    return len(inputs(folder))


def files_of(folder: Path, table: str) -> list[Path]:
    return [folder / name for name in inputs(folder)]


def inputs(folder: Path) -> list[str]:
    """All files below the folder, relative to it, without captions and names that start with a dot; sorted.

    raises      UserError if there is no folder
    """
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}; correct the path")
    found, visited = [], set()
    for here, folders, files in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(here))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(here, name)) not in visited
        ]
        stems = {Path(name).stem for name in files if not name.endswith(".txt")}
        for name in files:
            caption = name.endswith(".txt") and Path(name).stem in stems
            if not name.startswith(".") and not caption:
                found.append(Path(here, name).relative_to(folder).as_posix())
    return sorted(found)


def sidecar(path: Path) -> str | None:
    """The caption beside a file, or None."""
    try:
        return path.with_suffix(".txt").read_text(encoding="utf-8").strip() or None if path.suffix != ".txt" else None
    except (OSError, UnicodeDecodeError):
        return None
