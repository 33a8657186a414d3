"""Keep finished shards of a job that fails later.

Snakemake deletes all outputs of a group of shards if one of its jobs fails or is cancelled. Hard links in a hidden
folder, which Snakemake does not know of, keep the finished shards. The next job for the same shard and the same inputs
restores it. `fvlm index` runs after all shard jobs have succeeded and removes the links, so that a shard that you force
is really made again.
"""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from fvlm.data.readers import Row
from fvlm.data.readers.row import in_any_form
from fvlm.files import write_beside

FOLDER = ".kept"


def made_from(settings: dict, folder: Path, rows: list[Row]) -> str:
    """Return a digest of the inputs of a shard: the command's settings, its rows, and time and size of each file."""
    total = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for row in rows:
        total.update(repr(row).encode("utf-8", "surrogatepass"))
        for media in row.media if row.media else ():
            total.update(_state_of(in_any_form(folder, media.inside or media.file)).encode())
    return total.hexdigest()


def _state_of(path: Path) -> str:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        return type(error).__name__
    return f"{status.st_mtime_ns} {status.st_size}"


def keep(files: tuple[Path, ...], depends: str) -> None:
    """Link the files of a finished shard; does nothing if the disk is full or has no hard links.

    files       all in one folder; the first one names the shard
    depends     digest from `made_from`
    """
    kept = files[0].parent / FOLDER
    note = kept / f"{files[0].name}.json"
    with suppress(OSError):
        kept.mkdir(exist_ok=True)
        note.unlink(missing_ok=True)  # links without a note are not used
        for file in files:
            (kept / file.name).unlink(missing_ok=True)
            os.link(file, kept / file.name)
        write_beside(note, lambda beside: beside.write_text(depends))


def bring_back(files: tuple[Path, ...], depends: str) -> bool:
    """Restore the files of a shard if they were kept with the same digest; return whether they were."""
    kept = files[0].parent / FOLDER
    try:
        if (kept / f"{files[0].name}.json").read_text() != depends:
            return False
        for file in files:
            file.unlink(missing_ok=True)
            os.link(kept / file.name, file)
    except (OSError, ValueError):  # ValueError: a damaged note
        return False
    return True


def forget(folder: Path) -> None:
    """Remove the links of all shards in a folder."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
