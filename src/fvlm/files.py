"""Write beside, then rename: a reader sees the old file or the whole new one, never a part."""

import hashlib
import json
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

LOG_END = 20_000  # bytes that are read from the end of a log, which can be long


def write_beside(path: Path | str, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file in the same folder, flush it to disk and rename it to `path`.

    The rename is flushed as well: after a power cut there is the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(beside)
        _flush(beside)
        os.replace(beside, path)
        _flush(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names none
        raise
    finally:
        beside.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def last_lines(path: Path | str, count: int) -> list[str]:
    """Return at most `count` lines from the end of a log, without empty lines; none if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_END))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]


def sweep(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder and those below; nobody may be writing there."""
    for path in folder.rglob(".*.part"):
        path.unlink()


def digest_of(text: str, files: Iterable[Path]) -> str:
    """A hash of a text and of what some files hold, in this order."""
    total = hashlib.sha256(text.encode())
    for path in files:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def check_archive(path: Path) -> None:
    """Refuse a zip that is not whole, or has a compressed member: a small file may hold more of it than any memory.

    raises      ValueError
    """
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
            damaged = None if packed else archive.testzip()  # torch compares no checksum
    except (zipfile.BadZipFile, struct.error, NotImplementedError) as error:
        raise ValueError(f"no whole archive: {error}") from error
    if packed:
        raise ValueError(f"{packed[0]} is compressed, which torch does not do")
    if damaged:
        raise ValueError(f"{damaged} is not what was written")


def check_pickle(path: Path, allowed: re.Pattern) -> None:
    """Refuse a checkpoint with objects that torch would build without running code, such as `bytearray(10**12)`.

    allowed     "module name" of each class or function that the checkpoint may refer to
    raises      ValueError
    """
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        content = b"".join(map(archive.read, names))
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST") and not allowed.fullmatch(str(argument)):
            raise ValueError(f"it holds {argument or 'an object'}, which no checkpoint does")


def write_json(path: Path | str, content: object) -> None:
    write_beside(path, lambda beside: beside.write_text(json.dumps(content, indent=1) + "\n"))
