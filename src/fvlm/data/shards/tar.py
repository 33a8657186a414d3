"""Read WebDataset tars: the places of each sample's members, and their bytes.

The members of a sample follow each other, so that one read at the sample's offset is enough.
"""

import contextlib
import mmap
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from fvlm.data.decode.media import MAX_SAMPLE_BYTES
from fvlm.errors import UserError

BLOCK = 512
LONGEST_HEADER = 1 << 20  # bytes of a member with the name and attributes of the next member
LONGEST_NAME = 4096  # bytes; file systems allow no more
ZEROS = 1 << 20  # bytes that are searched at a time for content behind the end mark
COMPRESSED = {  # first bytes
    "gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "xz": b"\xfd7zXZ", "bzip2": b"BZh", "lz4": b"\x04\x22\x4d\x18",
    "zip": b"PK\x03\x04",
}  # fmt: skip
ADLER_PRIME = 65_521


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of a tar; raises UserError if it is missing or empty."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise UserError(f"{path}: not a tar ({error}); make, copy or download it again") from error
    with data:
        yield data


def members_of(data: mmap.mmap | bytes, file: str, start: int = 0) -> Iterator[tuple[str, int, int, int]]:
    """(name, offset of the first header, offset of the content, size) of each regular member of a tar.

    raises      UserError with file and offset if the tar is cut off or damaged
    """
    offset, named = start, None  # `named`: name and first header of a member with a long name
    while offset + BLOCK <= len(data):
        header = data[offset : offset + BLOCK]
        if header[0] == 0 and not any(header):
            behind = _behind_zeros(data, offset)
            if behind is None:
                return
            offset = behind  # of a joined tar; behind a hole there is no header, which is found below
            continue
        try:
            checksum = int(header[148:156].strip(b"\0 ") or b"0", 8)
            size = _number(header[124:136])
        except ValueError as error:
            raise UserError(f"{file}: {_problem(data, offset, f'no tar header at byte {offset}')}") from error
        if (checksum - _sum_of(header)) % ADLER_PRIME:
            raise UserError(f"{file}: {_problem(data, offset, f'damaged tar header at byte {offset}')}")
        content = offset + BLOCK
        following = content + -(-size // BLOCK) * BLOCK
        if following > len(data):
            raise UserError(f"{file}: cut off in the member at byte {offset}; make or copy it again")
        kind, first = header[156:157], offset if named is None else named[1]
        if kind in (b"L", b"x"):  # GNU and PAX store a long name in an extra member
            name = _long_name(bytes(data[content : content + size]), kind) if size <= LONGEST_HEADER else None
            if size > LONGEST_HEADER or len(name or "") > LONGEST_NAME:
                raise UserError(f"{file}: a name of {size:,} bytes at byte {offset}; make or copy it again")
            named = (name, first)
        else:
            if kind in (b"0", b"\0"):
                yield (named and named[0]) or _short_name(header), first, content, size
            named = None
        offset = following
    raise UserError(f"{file}: {_problem(data, offset, f'no end mark of a tar at byte {len(data)}')}")


def _behind_zeros(data: mmap.mmap | bytes, offset: int) -> int | None:
    """The offset of the next block that holds anything; None if there is none."""
    while offset < len(data):
        part = data[offset : offset + ZEROS]
        rest = len(part.lstrip(b"\0"))
        if rest:
            return (offset + len(part) - rest) // BLOCK * BLOCK
        offset += len(part)
    return None


def _problem(data: mmap.mmap | bytes, offset: int, text: str) -> str:
    """The problem at an offset with its remedy. A file that does not begin with a tar header may be compressed."""
    found = [name for name, magic in COMPRESSED.items() if offset == 0 and data[: len(magic)] == magic]
    return f"compressed with {found[0]}; unpack it first" if found else f"{text}; make or copy it again"


def _sum_of(header: bytes) -> int:
    """Sum of a header's bytes modulo 65,521, with its checksum as spaces.

    This is the low half of Adler-32 minus 1. A sum in Python would cost more than everything else about a header.
    """
    return (zlib.adler32(header[:148] + b" " * 8 + header[156:]) & 0xFFFF) - 1


def _number(field: bytes) -> int:
    """A size as octal text, or in base 256 from 8 GiB on; raises ValueError, also for a negative size."""
    number = int.from_bytes(field[1:], "big") if field[0] & 0x80 else int(field.strip(b"\0 ") or b"0", 8)
    if number < 0:
        raise ValueError(f"size {number}")
    return number


def _short_name(header: bytes) -> str:
    parts = (header[:100], header[345:500])
    name, prefix = (part.split(b"\0", 1)[0].decode("utf-8", "replace") for part in parts)
    posix = header[257:265] == b"ustar\x0000"  # GNU tar stores other fields at the place of the prefix
    return f"{prefix}/{name}" if prefix and posix else name


def _long_name(content: bytes, kind: bytes) -> str | None:
    if kind == b"L":
        return content.rstrip(b"\0").decode("utf-8", "replace")
    found = re.search(rb"\d+ path=([^\n]*)\n", content)
    return found[1].decode("utf-8", "replace") if found else None


def _in_samples(data: mmap.mmap | bytes, file: str) -> Iterator[tuple[str, str, int, int, int]]:
    """(key, suffix, offset of the first header, offset of the content, size) of each member of a sample.

    A key ends at the first dot of the file name. As in webdataset, names without a dot, or that begin with one such as
    ._001.jpg of macOS, are not part of a sample.
    """
    for name, first, content, size in members_of(data, file):
        folder, slash, base = name.rpartition("/")
        key, dot, suffix = base.partition(".")
        if key and dot:
            yield folder + slash + key, suffix, first, content, size


@dataclass(frozen=True)
class Entry:
    """One sample in a tar: `members` maps suffixes to (offset, size) of their content.

    repeated    a suffix that is there twice or more, so that it is unknown which members belong together; "" if none
    copies      how often it is there: so many samples have this key
    """

    key: str
    offset: int
    length: int
    members: dict[str, tuple[int, int]]
    repeated: str = ""
    copies: int = 1


def samples_of(data: mmap.mmap | bytes, file: str) -> Iterator[Entry]:
    """The samples of a tar; raises UserError if the members of a sample do not follow each other."""
    seen: set[str] = set()
    for entry in groups_of(data, file):
        if entry.key in seen:
            raise UserError(f"{file}: key {entry.key!r} again at byte {entry.offset}; sort the tar's members by key")
        seen.add(entry.key)
        yield entry


def groups_of(data: mmap.mmap | bytes, file: str) -> Iterator[Entry]:
    """The groups of neighbours with the same key."""
    for key, members in groupby(_in_samples(data, file), lambda member: member[0]):
        _, suffixes, firsts, contents, sizes = zip(*members, strict=True)
        end = contents[-1] + -(-sizes[-1] // BLOCK) * BLOCK
        places = dict(zip(suffixes, zip(contents, sizes, strict=True), strict=True))
        suffix, copies = Counter(suffixes).most_common(1)[0]
        yield Entry(key, firsts[0], end - firsts[0], places, suffix if copies > 1 else "", copies)


def read_sample(file: Path | str, offset: int, length: int, key: str | None = None) -> dict[str, bytes]:
    """Return the content of a sample's members by suffix, such as `000.jpg` and `json`.

    key         key of the expected sample, also as `tar/key`; None: any sample
    raises      UserError if the file cannot be read, or has changed since it was indexed
    """
    try:
        with open(file, "rb", buffering=0) as tar:
            available = max(0, os.fstat(tar.fileno()).st_size - offset)
            if offset < 0 or not 0 < length <= min(available, MAX_SAMPLE_BYTES):
                count = min(available, length)
                raise UserError(f"{file}: {count} of {length} bytes at byte {offset}; make its index again")
            raw = os.pread(tar.fileno(), length, offset)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; put it back, or make its index again") from error
    try:
        members = list(_in_samples(raw + bytes(BLOCK), str(file)))
    except UserError as error:
        raise UserError(f"{file}: no sample at byte {offset}, but its index has one; make its index again") from error
    for found_key, *_ in members:
        if key is not None and found_key != key and not key.endswith(f"/{found_key}"):
            raise UserError(
                f"{file}: {found_key!r} at byte {offset}, expected {key!r} as in its index; make its index again"
            )
    return {suffix: raw[content : content + size] for _, suffix, _, content, size in members}
