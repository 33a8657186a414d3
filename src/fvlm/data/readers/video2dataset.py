"""Tars that video2dataset wrote: {key}.mp4, {key}.txt and {key}.json of each clip; beside a tar its .parquet.

The number of a row is the position of its tar * 100,000 + its position inside, so that each tar gives one shard. What
could not be downloaded is an input too: it stands in the tar without a video, or, after the others, in the .parquet
alone, with `status` and `error_message`.
https://github.com/iejMac/video2dataset (video2dataset/data_writer.py, video2dataset/workers/download_worker.py)
"""

import contextlib
import json
import mmap
from collections.abc import Iterator
from pathlib import Path

from fvlm.data.decode.media import Media
from fvlm.data.readers import tables
from fvlm.data.readers.row import BadRow, Place, Row, Sample, about, known, row_of
from fvlm.data.readers.tables import LONGEST_LINE
from fvlm.data.shards.tar import members_of
from fvlm.errors import UserError

ROWS_PER_TAR = 100_000
VIDEOS = ("mp4", "webm", "mkv", "avi", "mov")
HINT = "correct `path`; expected tars such as 00000.tar, or a range such as {00000..00099}.tar"


def rows(folder: Path, table: str, start: int = 0, stop: int | None = None) -> Iterator[Row]:
    tars = files_of(folder, table)
    last = len(tars) if stop is None else min(len(tars), -(-stop // ROWS_PER_TAR))
    for position in range(start // ROWS_PER_TAR, last):
        place = Place(folder, tars[position])
        for inside, record in enumerate(_records(tars[position])):
            if inside >= ROWS_PER_TAR:
                raise UserError(f"{tars[position]}: more than {ROWS_PER_TAR:,} samples; split it into several tars")
            number = position * ROWS_PER_TAR + inside
            if start <= number and (stop is None or number < stop):
                yield row_of(number, video2dataset, record, place)


def count(folder: Path, table: str) -> int:
    """Rows of all tars; those of a tar are counted in its .parquet where there is one."""
    tars = files_of(folder, table)
    beside = [tar.with_suffix(".parquet") for tar in tars]
    return sum(
        tables.count([parquet]) if parquet.is_file() else sum(1 for _ in _records(tar))
        for tar, parquet in zip(tars, beside, strict=True)
    )


def files_of(folder: Path, table: str) -> list[Path]:
    return tables.find(folder, table, HINT, (".tar",))


def video2dataset(record: dict, place: Place) -> Sample:
    """One clip: its members (suffix -> where it is), or only what the .parquet says of it."""
    key, members, about_it = record["key"], record["members"], record["about"]
    suffix = next((suffix for suffix in VIDEOS if suffix in members), None)
    tar = place.table.relative_to(place.folder).as_posix()
    if suffix is None:
        status, message = about_it.get("status"), about_it.get("error_message")
        with about(Media(f"{tar}/{key}")):
            if status and status != "success":
                raise BadRow(f"{status}: {message or about_it.get('url') or 'no message'}", reason="missing")
            raise BadRow(f"no video among its members ({', '.join(sorted(members)) or 'none'})")
    offset, size = members[suffix]
    video = Media(f"{tar}/{key}.{suffix}", inside=tar, offset=offset, size=size)
    with about(video):
        caption = record["caption"] or about_it.get("caption")
        if not isinstance(caption, str) or not caption.strip():
            raise BadRow("no caption: the .txt is empty or missing, and so is `caption` in the .json")
        return Sample((video,), {"caption": caption.strip()}, known(id=key, url=about_it.get("url")))


def _records(tar: Path) -> Iterator[dict]:
    """{key, members, caption, about} of each sample of a tar, then of what only its .parquet knows."""
    seen = set()
    for record in _in_tar(tar):
        seen.add(record["key"])
        yield record
    parquet = tar.with_suffix(".parquet")
    if parquet.is_file():
        for _, _, described in tables.records([parquet]):
            key = str(described.get("key"))
            if key not in seen:
                yield {"key": key, "members": {}, "caption": None, "about": described}


def _in_tar(path: Path) -> Iterator[dict]:
    record: dict | None = None
    with _mapped(path) as data:
        for name, _, offset, size in members_of(data, str(path)):
            folder, slash, base = name.rpartition("/")
            key, _, suffix = base.partition(".")
            key = folder + slash + key
            if not suffix:
                continue
            if record is None or key != record["key"]:
                if record is not None:
                    yield record
                record = {"key": key, "members": {}, "caption": None, "about": {}}
            record["members"][suffix] = (offset, size)
            if suffix in ("txt", "json") and size <= LONGEST_LINE:
                _take_in(record, suffix, data[offset : offset + size])
    if record is not None:
        yield record


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise UserError(f"{path}: no tar ({error}); download it again") from error


def _take_in(record: dict, suffix: str, content: bytes) -> None:
    try:
        if suffix == "txt":
            record["caption"] = content.decode()
        else:
            described = json.loads(content)
            record["about"] = described if isinstance(described, dict) else {}
    except (ValueError, RecursionError):  # no JSON, or no UTF-8: the same as missing
        return
