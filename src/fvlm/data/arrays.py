"""Arrays in .npz files: written beside and renamed; read only if the file holds what its headers claim."""

import contextlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from fvlm.files import write_beside


def save_arrays(path: Path, values: dict) -> None:
    def save(beside: Path) -> None:
        with beside.open("wb") as file:  # given a path, savez would change its suffix
            np.savez(file, **values)

    write_beside(path, save)


@contextlib.contextmanager
def open_arrays(path: Path | str) -> Iterator[np.lib.npyio.NpzFile]:
    """A file that `save_arrays` wrote. Nothing is unpickled, and no array is larger than its part of the file.

    raises      OSError, ValueError, zipfile.BadZipFile: it is not there, or not such a file
    """
    if not zipfile.is_zipfile(path):  # np.load would read whatever else it is
        with open(path, "rb"):
            raise ValueError("no .npz file")
    with np.load(path, allow_pickle=False) as stored:
        for member in stored.zip.infolist():
            _check(stored.zip, member)
        yield stored


def _check(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed, which none of these files is")
    with archive.open(member) as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, kind = read(file)
        claimed, found = math.prod(shape) * kind.itemsize, member.file_size - file.tell()
    if kind.hasobject or claimed != found:
        raise ValueError(f"{member.filename}: {shape} of {kind}, {claimed} bytes, in {found}")
