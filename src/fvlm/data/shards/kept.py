"""Finished shards outlive the job that made them.

Snakemake deletes the outputs of a job that failed or was cancelled: of a group of twenty shards all twenty, finished or
not. Hard links in a hidden folder beside them, which it does not know of, keep them; the next job that is to make
the same shard from the same inputs brings it back. `fvlm index` needs all shards and thus knows that their jobs have
ended well: it removes the links, so that a shard that is made again on purpose is really made.
"""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from fvlm.data.readers import Row
from fvlm.files import write_beside

FOLDER = ".kept"


def made_from(settings: dict, folder: Path, rows: list[Row]) -> str:
    """A digest of what a shard depends on: the command's settings, its rows, and time and size of each file."""
    total = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for row in rows:
        total.update(repr(row).encode("utf-8", "surrogatepass"))
        for media in row.media if row.media else ():
            total.update(_state_of(folder / (media.inside or media.file)).encode())
    return total.hexdigest()


def _state_of(path: Path) -> str:
    try:
        about = path.stat()
    except (OSError, ValueError) as error:  # a name that no file can have
        return type(error).__name__
    return f"{about.st_mtime_ns} {about.st_size}"


def keep(files: tuple[Path, ...], depends: str) -> None:
    """Remember the files of a finished shard. Where a disk is full or has no hard links, they are not kept.

    files       all in one folder; the first gives the shard its name
    depends     as `made_from` says it
    """
    kept = files[0].parent / FOLDER
    note = kept / f"{files[0].name}.json"
    with suppress(OSError):
        kept.mkdir(exist_ok=True)
        note.unlink(missing_ok=True)  # while it is not there, the links mean nothing
        for file in files:
            (kept / file.name).unlink(missing_ok=True)
            os.link(file, kept / file.name)
        write_beside(note, lambda beside: beside.write_text(json.dumps({"depends": depends})))


def bring_back(files: tuple[Path, ...], depends: str) -> bool:
    """Put the files of a shard back if they were kept and depend on the same; where the last one stands, all do."""
    kept = files[0].parent / FOLDER
    try:
        if json.loads((kept / f"{files[0].name}.json").read_text())["depends"] != depends:
            return False
        for file in files:
            file.unlink(missing_ok=True)
            os.link(kept / file.name, file)
    except (OSError, ValueError, KeyError):
        return False
    return True


def forget(folder: Path) -> None:
    """Remove what was kept of the shards in a folder."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
