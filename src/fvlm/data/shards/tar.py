"""Walk WebDataset tars: where each sample's members lie, and their bytes.

A sample is the raw bytes of its members, so that it can be read alone, with one read at its offset.
"""

import mmap
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fvlm.data.decode.media import MAX_SAMPLE_BYTES
from fvlm.errors import UserError

BLOCK = 512
LONGEST_HEADER = 1 << 20  # bytes of a member that says more of the next one: its name, attributes, ...
LONGEST_NAME = 4096  # bytes; no file system takes more
ADLER_PRIME = 65_521


def members_of(data: mmap.mmap | bytes, file: str, start: int = 0) -> Iterator[tuple[str, int, int, int]]:
    """Name, offset of the first header, offset of the content, size of each regular member of a tar.

    raises      UserError naming file and offset where the tar is cut or damaged
    """
    offset, named = start, None  # `named`: name and first header of a member with a long name
    while offset + BLOCK <= len(data):
        header = data[offset : offset + BLOCK]
        if header[0] == 0 and not any(header):
            return
        try:
            checksum = int(header[148:156].strip(b"\0 ") or b"0", 8)
            size = _number(header[124:136])
        except ValueError as error:
            raise UserError(f"{file}: no tar header at byte {offset}; make or copy the file again") from error
        if (checksum - _sum_of(header)) % ADLER_PRIME:
            raise UserError(f"{file}: damaged tar header at byte {offset}; make or copy the file again")
        content = offset + BLOCK
        following = content + -(-size // BLOCK) * BLOCK
        if following > len(data):
            raise UserError(f"{file}: cut within the member at byte {offset}; make or copy the file again")
        kind, first = header[156:157], offset if named is None else named[1]
        if kind in (b"L", b"x"):  # GNU and PAX long names stand in a member of their own
            name = _long_name(bytes(data[content : content + size]), kind) if size <= LONGEST_HEADER else None
            if size > LONGEST_HEADER or len(name or "") > LONGEST_NAME:
                raise UserError(f"{file}: a name of {size:,} bytes at byte {offset}; make or copy the file again")
            named = (name, first)
        else:
            if kind in (b"0", b"\0"):
                yield (named and named[0]) or _short_name(header), first, content, size
            named = None
        offset = following
    raise UserError(f"{file}: ends at byte {len(data)} without the mark that ends a tar; make or copy it again")


def _sum_of(header: bytes) -> int:
    """Sum of a header's bytes, its checksum counted as spaces, modulo 65,521: the low half of Adler-32 is that plus 1.

    Summing in Python would cost more than all else that is done with a header.
    """
    return (zlib.adler32(header[:148] + b" " * 8 + header[156:]) & 0xFFFF) - 1


def _number(field: bytes) -> int:
    """Octal text, or base 256 for sizes of 8 GiB and more; raises ValueError, also where a size would lead back."""
    number = int.from_bytes(field[1:], "big") if field[0] & 0x80 else int(field.strip(b"\0 ") or b"0", 8)
    if number < 0:
        raise ValueError(f"size {number}")
    return number


def _short_name(header: bytes) -> str:
    parts = (header[:100], header[345:500])
    name, prefix = (part.split(b"\0", 1)[0].decode("utf-8", "replace") for part in parts)
    posix = header[257:265] == b"ustar\x0000"  # GNU's header has other things where POSIX has the prefix
    return f"{prefix}/{name}" if prefix and posix else name


def _long_name(content: bytes, kind: bytes) -> str | None:
    if kind == b"L":
        return content.rstrip(b"\0").decode("utf-8", "replace")
    found = re.search(rb"\d+ path=([^\n]*)\n", content)
    return found[1].decode("utf-8", "replace") if found else None


def _in_samples(data: mmap.mmap | bytes, file: str) -> Iterator[tuple[str, str, int, int, int]]:
    """Key, suffix, offset of the first header, offset of the content, size of each member that is part of a sample.

    A key ends at the first dot of the file name. Names without a dot, or with nothing before it such as macOS's
    ._001.jpg, are no part of a sample, as webdataset has it.
    """
    for name, first, content, size in members_of(data, file):
        folder, slash, base = name.rpartition("/")
        key, dot, suffix = base.partition(".")
        if key and dot:
            yield folder + slash + key, suffix, first, content, size


@dataclass(frozen=True)
class Entry:
    """One sample in a tar: `members` maps suffixes to (offset, size) of their content."""

    key: str
    offset: int
    length: int
    members: dict[str, tuple[int, int]]


def samples_of(data: mmap.mmap | bytes, file: str) -> Iterator[Entry]:
    """Members grouped by key; raises UserError if a key comes back after another one."""
    seen: set[str] = set()
    key, start, end, members = None, 0, 0, {}
    for found, suffix, first, content, size in _in_samples(data, file):
        if found != key:
            if key is not None:
                yield Entry(key, start, end - start, members)
            if found in seen:
                raise UserError(f"{file}: key {found!r} comes back at byte {first}; sort the tar's members by key")
            seen.add(found)
            key, start, members = found, first, {}
        members[suffix] = (content, size)
        end = content + -(-size // BLOCK) * BLOCK
    if key is not None:
        yield Entry(key, start, end - start, members)


def read_sample(file: Path | str, offset: int, length: int, key: str | None = None) -> dict[str, bytes]:
    """Content of a sample's members by suffix, such as `000.jpg` and `json`.

    key         of the sample that should be there, also as `tar/key`; None: whichever is
    raises      UserError if the file cannot be read, or has something else there since it was indexed
    """
    try:
        tar = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; put it back, or make its index again") from error
    try:
        there = max(0, os.fstat(tar).st_size - offset)
        if offset < 0 or not 0 < length <= min(there, MAX_SAMPLE_BYTES):
            raise UserError(f"{file}: {min(there, length)} of {length} bytes at byte {offset}; make its index again")
        raw = os.pread(tar, length, offset)
    except OSError as error:  # a folder in its place, for one
        raise UserError(f"{file}: {error.strerror}; put it back, or make its index again") from error
    finally:
        os.close(tar)
    try:
        members = list(_in_samples(raw + bytes(BLOCK), str(file)))
    except UserError as error:
        raise UserError(f"{file}: no sample at byte {offset}, where its index has one; make its index again") from error
    for found, *_ in members:
        if key is not None and found != key and not key.endswith(f"/{found}"):
            raise UserError(f"{file}: {found!r} at byte {offset}, its index says {key!r}; make its index again")
    return {suffix: raw[content : content + size] for _, suffix, _, content, size in members}
