"""Tars of video2dataset: {key}.mp4, {key}.txt and {key}.json of each clip; a .parquet beside each tar.

The number of a row is 100,000 * the position of its tar + its position in the tar, so that each tar becomes one shard.
Failed downloads are inputs too: they are in the tar without a video, or only in the .parquet, with `status` and
`error_message`; these come last.
https://github.com/iejMac/video2dataset (video2dataset/data_writer.py, video2dataset/workers/download_worker.py)
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from fvlm.data.decode.media import Media
from fvlm.data.readers import tables
from fvlm.data.readers.row import BadRow, Place, Row, Sample, known, row_of
from fvlm.data.readers.tables import LONGEST_LINE
from fvlm.data.shards.tar import groups_of, mapped
from fvlm.errors import UserError

ROWS_PER_TAR = 100_000
VIDEOS = ("mp4", "webm", "mkv", "avi", "mov")
HINT = "correct `path`; expected tars such as 00000.tar, or a range such as {00000..00099}.tar"


def rows(folder: Path, table: str, start: int = 0, stop: int | None = None) -> Iterator[Row]:
    tars = files_of(folder, table)
    last = len(tars) if stop is None else min(len(tars), -(-stop // ROWS_PER_TAR))
    for position in range(start // ROWS_PER_TAR, last):
        for inside, record in enumerate(_records(tars[position])):
            if inside >= ROWS_PER_TAR:
                raise UserError(f"{tars[position]}: more than {ROWS_PER_TAR:,} samples; split the tar")
            number = position * ROWS_PER_TAR + inside
            if start <= number and (stop is None or number < stop):
                yield row_of(number, video2dataset, record, folder, tars[position])


def count(folder: Path, table: str) -> int:
    """Return the number of rows of all tars, from their .parquet files if they exist."""
    total = 0
    for tar in files_of(folder, table):
        parquet = tar.with_suffix(".parquet")
        total += tables.count([parquet]) if parquet.is_file() else sum(1 for _ in _records(tar))
    return total


def files_of(folder: Path, table: str) -> list[Path]:
    return tables.find(folder, table, HINT, (".tar",))


def video2dataset(record: dict, place: Place) -> Sample:
    """One clip: its members (suffix -> offset and size) and its description, from the tar or the .parquet."""
    key, members, description = record["key"], record["members"], record["about"]
    suffix = next((suffix for suffix in VIDEOS if suffix in members), None)
    tar = place.table.relative_to(place.folder).as_posix()
    if suffix is None:
        place.media = (Media(f"{tar}/{key}"),)
        status, message = description.get("status"), description.get("error_message")
        if status and status != "success":
            raise BadRow(f"{status}: {message or description.get('url') or 'no message'}", reason="missing")
        raise BadRow(f"no video among its members ({', '.join(sorted(members)) or 'none'})")
    if record["repeated"]:
        raise BadRow(f"{record['repeated']!r} is there twice or more under the key {key!r}; rename the samples")
    offset, size = members[suffix]
    place.media = (Media(f"{tar}/{key}.{suffix}", inside=tar, offset=offset, size=size),)
    caption = record["caption"] or description.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        raise BadRow("no caption: the .txt is empty or missing, and so is `caption` in the .json")
    return Sample({"caption": caption.strip()}, known(id=key, url=description.get("url")))


def _records(tar: Path) -> Iterator[dict]:
    """{key, members, caption, about} of each sample in a tar, then of the samples that are only in its .parquet."""
    seen = set()
    for record in _in_tar(tar):
        seen.add(record["key"])
        yield record
    parquet = tar.with_suffix(".parquet")
    if parquet.is_file():
        for _, _, description in tables.records([parquet]):
            key = str(description.get("key"))
            if key not in seen:
                yield {"key": key, "members": {}, "caption": None, "about": description, "repeated": ""}


def _in_tar(path: Path) -> Iterator[dict]:
    with mapped(path) as data:
        for entry in groups_of(data, str(path)):
            record = {"key": entry.key, "members": entry.members, "caption": None, "about": {}}
            record["repeated"] = entry.repeated
            for suffix in {"txt", "json"} & entry.members.keys():
                offset, size = entry.members[suffix]
                if size <= LONGEST_LINE:
                    _add_text(record, suffix, data[offset : offset + size])
            yield from [record] * entry.copies


def _add_text(record: dict, suffix: str, content: bytes) -> None:
    with contextlib.suppress(ValueError, RecursionError):  # invalid JSON or UTF-8 counts as missing
        if suffix == "txt":
            record["caption"] = content.decode()
        elif isinstance(description := json.loads(content), dict):
            record["about"] = description
