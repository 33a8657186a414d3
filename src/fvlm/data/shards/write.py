"""Turn rows of a source into WebDataset shards with their ledgers, which list every row exactly once.

A shard is `00000.tar` with `00000.ledger.jsonl` and, written last, `00000.tar.sha256` beside it. The same rows give the
same bytes with any number of processes and in any folder.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

from fvlm.data.decode.media import Media, MediaError
from fvlm.data.decode.pool import Decoded, DecodePool, decode_to_jpegs
from fvlm.data.progress import Progress
from fvlm.data.readers import Row, rows_per_shard
from fvlm.data.shards import ledger
from fvlm.errors import UserError
from fvlm.files import write_beside

READ_AHEAD = 8  # files per process that are decoded ahead of the row that is written
NAME = re.compile(r"[A-Za-z0-9_-]+")  # no dot, at which a WebDataset key ends


def make_shard(
    rows: list[Row],
    folder: Path,
    source_name: str,
    kind: str,
    prompt: str,
    out_tar: Path,
    out_ledger: Path,
    processes: int = 1,
    deadline_s: float = 60,
    may_be_empty: bool = False,
    backend: str = "pyav",
    crop: bool = True,
) -> Counter:
    """Decode rows of a source; write the shard, its ledger and its checksum, each in full or not at all.

    rows        rows of this shard, at least one; their numbers are those of the source
    kind        "video", "image", "text" or "preference"; all media of the last three are images
    prompt      the user's question for a row with only a caption
    may_be_empty  False: a shard without any kept row fails and leaves its ledger as `{out_ledger}.rejected`. The limit
                for the whole source is checked elsewhere: `ledger.check_rejects`
    crop        True: scale the short side to 224, then crop the centre; False: squash both sides to 224
    returns     number of rows by reason, and of "kept" rows
    raises      UserError if no row was kept
    """
    if not NAME.fullmatch(source_name):
        raise UserError(f"source name {source_name!r}: use only letters, digits, _ and -, as every key begins with it")
    decode = partial(decode_to_jpegs, folder=folder, backend=backend, crop=crop)
    with _beside(out_tar) as tar, _beside(out_ledger) as listed:
        with DecodePool(decode, processes, deadline_s) as pool:
            results = _decoded(pool, _with_images(rows, kind), kind, READ_AHEAD * processes)
            counts = _write(results, len(rows), source_name, kind, prompt, out_tar, tar, listed)
        rejected = out_ledger.with_name(out_ledger.name + ".rejected")
        if not counts["kept"] and not may_be_empty:
            listed.replace(rejected)
            common = ", ".join(f"{reason} {count}" for reason, count in counts.most_common(5))
            raise UserError(
                f"source {source_name!r}: all {len(rows)} rows of {out_tar.name} rejected ({common}); read {rejected}, "
                "correct the source's path or files, or set its `max_reject` to 1"
            )
        rejected.unlink(missing_ok=True)
        with tar.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    line = f"{digest}  {out_tar.name}\n"
    write_beside(checksum_of(out_tar), lambda beside: beside.write_text(line))
    return counts


def checksum_of(tar: Path) -> Path:
    """Path of the file with a shard's SHA-256, in the format of `sha256sum`."""
    return tar.with_name(tar.name + ".sha256")


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A file for this process to write, which is then renamed to `path`; removes those of killed processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name, host = f".{path.name}.", socket.gethostname()
    for other in path.parent.glob(f"{name}*.{host}.part"):
        if not Path("/proc", other.name[len(name) :].split(".")[0]).exists():
            other.unlink(missing_ok=True)
    beside = path.with_name(f"{name}{os.getpid()}.{host}.part")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())  # before it counts as finished
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _write(
    results: Iterator[tuple[Row, Decoded | MediaError]], total: int, source: str, kind: str, prompt: str,
    out_tar: Path, tar: Path, listed: Path,
) -> Counter:  # fmt: skip
    """Write samples to `tar` and lines to `listed`; return the number of rows by reason."""
    counts: Counter = Counter()
    progress = Progress(f"shard {source}/{out_tar.stem}", total, "rows")
    with tar.open("wb") as tar_file, listed.open("w", encoding="utf-8") as lines, open_tar(tar_file) as writer:
        for row, result in results:
            key = f"{source}-{row.number:07d}"
            about = {"source": source, "kind": kind, "row": row.number, "file": row.file}
            if isinstance(result, MediaError):
                about |= {"reason": result.reason, "message": str(result)}
            else:
                writer.write(_members(row, result, key, source, kind, prompt))
                about |= {"key": key, "shard": out_tar.name, "frames": len(result.jpegs)}
                about |= {"duration_s": result.duration_s, "codec": result.codec}
            counts[about.get("reason", "kept")] += 1
            lines.write(ledger.ledger_line(**about))
            progress.step(f", {counts.total() - counts['kept']} rejected")
    return counts


def open_tar(file):
    """Return a TarWriter whose bytes depend only on the samples."""
    from webdataset.writer import TarWriter  # imports torch

    return TarWriter(file, encoder=False, mtime=0, user="", group="")


def _with_images(rows: list[Row], kind: str) -> list[tuple[Row, tuple[Media, ...]]]:
    """Each row with the media to decode, which are images if the kind requires it; none for bad rows and texts."""
    pairs = []
    for row in rows:
        media = () if row.problem is not None or kind == "text" else row.media
        if kind in ("image", "preference"):
            media = tuple(replace(m, image=True, span_s=None) for m in media)
        pairs.append((row, media))
    return pairs


def _decoded(
    pool: DecodePool, rows: list[tuple[Row, tuple[Media, ...]]], kind: str, ahead: int
) -> Iterator[tuple[Row, Decoded | MediaError]]:
    """Rows in order with their results; a file that several rows name is decoded once."""
    uses = Counter(media for _, all_media in rows for media in all_media)
    futures: dict[Media, Future[Decoded]] = {}
    submitted = 0
    for i, (row, all_media) in enumerate(rows):
        while submitted < len(rows) and submitted <= i + ahead:
            for media in rows[submitted][1]:
                if media not in futures:
                    futures[media] = pool.submit(media)
            submitted += 1
        yield row, _outcome(row, kind, [futures[media] for media in all_media])
        for media in all_media:
            uses[media] -= 1
            if not uses[media]:
                del futures[media]


def _outcome(row: Row, kind: str, futures: list[Future[Decoded]]) -> Decoded | MediaError:
    """The sample's frames, of one video or of all its images; or the problem of the first file without frames."""
    if row.problem is not None:
        return MediaError(row.reason, row.problem)
    if kind == "preference" and "chosen" not in row.text:
        return MediaError("bad_row", "no `chosen` and `rejected` answers")
    if kind == "text":
        return Decoded([], [], 0.0, "text")
    if not futures:
        return MediaError("bad_row", "no image or video; rows without media need `kind: text`")
    try:
        parts = [future.result() for future in futures]
    except MediaError as error:
        return error
    if len(parts) == 1:
        return parts[0]
    jpegs = [jpeg for part in parts for jpeg in part.jpegs]
    times_s = [time_s for part in parts for time_s in part.times_s]
    return Decoded(jpegs, row.extra.get("frame_times", times_s), 0.0, parts[0].codec)


def _members(row: Row, decoded: Decoded, key: str, source: str, kind: str, prompt: str) -> dict:
    """One sample in the form of webdataset: `000.jpg`, `001.jpg`, ... and `json`."""
    content = _text(row, prompt) | {
        "source": source,
        "kind": kind,
        "frame_count": len(decoded.jpegs),
        "frame_times": row.extra.get("frame_times", decoded.times_s),
        "file": row.file,
    }
    if len(row.media) > 1:
        content["files"] = [media.file for media in row.media]
    if row.media and row.media[0].span_s is not None:
        content["span_s"] = list(row.media[0].span_s)
    content |= {name: value for name, value in row.extra.items() if name not in content}
    images = {f"{i:03d}.jpg": jpeg for i, jpeg in enumerate(decoded.jpegs)}
    return {"__key__": key, **images, "json": json.dumps(content, ensure_ascii=False).encode()}


def _text(row: Row, prompt: str) -> dict:
    if "caption" not in row.text:
        return row.text | ({"assistant": row.text["chosen"]} if "chosen" in row.text else {})
    question = {"user": row.prompt or prompt}
    # A file of a bare folder may have no caption; an index rejects its sample, which has no answer.
    return question | ({"assistant": row.text["caption"]} if row.text["caption"] else {})


def shard_paths(out: Path, number: int) -> tuple[Path, Path]:
    """The tar and the ledger of a shard."""
    return out / f"{number:05d}.tar", out / f"{number:05d}.ledger.jsonl"


def is_complete(tar: Path, listed: Path) -> bool:
    """Return whether a shard is finished; its checksum is written last."""
    return tar.is_file() and listed.is_file() and checksum_of(tar).is_file()


def make_numbered(args: argparse.Namespace, number: int, rows: list[Row]) -> Counter:
    """Make one shard of the command line's source.

    A last shard with fewer rows, or a later tar of video2dataset, may keep nothing; too few rows to judge the source.
    """
    remainder = number > 0 and len(rows) < rows_per_shard(args.reader, args.samples_per_shard)
    return make_shard(
        rows, args.folder, args.name, args.kind, args.prompt, *shard_paths(args.out, number),
        args.processes, args.deadline, remainder or args.max_reject == 1, args.backend, not args.squash,
    )  # fmt: skip
