"""Arrays in .npz files. A file is read only if its content has the size that its headers state."""

import contextlib
import math
import tokenize
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from fvlm.errors import BROKEN
from fvlm.files import write_beside

EMPTY_SIDE = 1 << 16  # largest side of an array without bytes, whose size cannot be compared


def save_arrays(path: Path, values: dict) -> None:
    """Write arrays to an .npz file, in full or not at all."""

    def save(beside: Path) -> None:
        with beside.open("wb") as file:  # with a path, savez would change the suffix
            np.savez(file, **values)

    write_beside(path, save)


@contextlib.contextmanager
def open_arrays(path: Path | str) -> Iterator[np.lib.npyio.NpzFile]:
    """Open a file of `save_arrays`. Nothing is unpickled, and no array is larger than its part of the file.

    raises      OSError or ValueError if the file is missing or different
    """
    with open(path, "rb") as file:
        if file.read(4) not in (b"PK\3\4", b"PK\5\6") or not zipfile.is_zipfile(path):
            raise ValueError("no .npz file")  # np.load would accept other formats
    with _loaded(path) as stored:
        yield stored


def _loaded(path: Path | str) -> np.lib.npyio.NpzFile:
    """Load a file; raises ValueError for any problem of its content."""
    try:
        stored = np.load(path, allow_pickle=False)
        for member in stored.zip.infolist():
            _check(stored.zip, member)
    except (*BROKEN, zipfile.BadZipFile, tokenize.TokenError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    return stored


def _check(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed, expected an uncompressed array")
    with archive.open(member) as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, kind = read(file)
        number, stored = math.prod(shape), member.file_size - file.tell()
    expected = number * kind.itemsize
    # An array without bytes (elements of size 0, or a side of 0) could claim any length of its other sides.
    wrong = expected != stored or min(shape, default=0) < 0 or max((number, *shape)) > max(stored, EMPTY_SIDE)
    if kind.hasobject or wrong:
        raise ValueError(f"{member.filename}: {stored} bytes, expected {expected} for {shape} of {kind}")
