"""Arrays in .npz files: written beside and renamed; read only if the file holds what its headers claim."""

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

EMPTY_SIDE = 1 << 16  # most elements where there are no bytes to compare their number with


def save_arrays(path: Path, values: dict) -> None:
    def save(beside: Path) -> None:
        with beside.open("wb") as file:  # given a path, savez would change its suffix
            np.savez(file, **values)

    write_beside(path, save)


@contextlib.contextmanager
def open_arrays(path: Path | str) -> Iterator[np.lib.npyio.NpzFile]:
    """A file that `save_arrays` wrote. Nothing is unpickled, and no array is larger than its part of the file.

    raises      OSError, ValueError: it is not there, or not such a file
    """
    with open(path, "rb") as file:
        if file.read(4) not in (b"PK\3\4", b"PK\5\6") or not zipfile.is_zipfile(path):
            raise ValueError("no .npz file")  # np.load would read whatever else it is
    with _loaded(path) as stored:
        yield stored


def _loaded(path: Path | str) -> np.lib.npyio.NpzFile:
    """raises ValueError, whatever is wrong with the content"""
    try:
        stored = np.load(path, allow_pickle=False)
        for member in stored.zip.infolist():
            _check(stored.zip, member)
    except (*BROKEN, zipfile.BadZipFile, tokenize.TokenError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    return stored


def _check(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed, which none of these files is")
    with archive.open(member) as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, kind = read(file)
        number, found = math.prod(shape), member.file_size - file.tell()
    claimed = number * kind.itemsize
    # An element of no bytes, or a side of no elements, would let the other sides be as long as they like.
    unlike = claimed != found or min(shape, default=0) < 0 or max((number, *shape)) > max(found, EMPTY_SIDE)
    if kind.hasobject or unlike:
        raise ValueError(f"{member.filename}: {shape} of {kind}, {claimed} bytes, in {found}")
