"""Turn rows of a source into WebDataset shards with their ledgers, which list every row exactly once.

A shard is `00000.tar` with, beside it, `00000.ledger.jsonl` and, written last, `00000.tar.sha256`. The same rows give
the same bytes, whatever the number of processes and wherever the folder stands.
"""

import argparse
import hashlib
import json
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from fvlm.data.decode.media import Media, MediaError
from fvlm.data.decode.pool import Decoded, DecodePool, decode_to_jpegs
from fvlm.data.readers import Row, rows_per_shard
from fvlm.data.shards import ledger
from fvlm.errors import UserError
from fvlm.files import write_beside

READ_AHEAD = 8  # files per process that may be decoded before the row that is written
NAME = re.compile(r"[A-Za-z0-9_-]+")  # a WebDataset key ends at its first dot


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
    """Decode some rows of a source; write the shard, its ledger and its checksum, each beside and then renamed.

    rows        what goes into this shard, at least one; their numbers are those of the source
    kind        "video", "image", "text" or "preference"; of the others than video, all media are images
    prompt      what the user asks where a row has only a caption
    may_be_empty  False: a shard that keeps nothing fails, and its ledger is then `{out_ledger}.rejected`. What share
                may be rejected is for the whole source to say: `ledger.check_rejects`
    crop        True: short side to 224, then the centre; False: both sides squashed to 224
    returns     how many rows by reason; "kept" counts the kept ones
    raises      UserError when nothing was kept
    """
    if not NAME.fullmatch(source_name):
        raise UserError(f"source name {source_name!r}: use letters, digits, _ and - only; it begins every key")
    out_tar.parent.mkdir(parents=True, exist_ok=True)
    out_ledger.parent.mkdir(parents=True, exist_ok=True)
    tar, listed = _part(out_tar), _part(out_ledger)
    decode = partial(decode_to_jpegs, folder=folder, backend=backend, crop=crop)
    try:
        with DecodePool(decode, processes, deadline_s) as pool:
            results = _decoded(pool, _with_images(rows, kind), kind, READ_AHEAD * processes)
            counts = _write(results, len(rows), source_name, kind, prompt, out_tar, tar, listed)
        if counts.total() != len(rows):
            raise RuntimeError(f"{out_tar}: {len(rows)} rows, {counts.total()} in the ledger")
        rejected = out_ledger.with_name(out_ledger.name + ".rejected")
        if not counts["kept"] and not may_be_empty:
            listed.replace(rejected)
            common = ", ".join(f"{reason} {count}" for reason, count in counts.most_common(5))
            raise UserError(
                f"source {source_name!r}: all {len(rows)} rows of {out_tar.name} rejected ({common}); read {rejected}, "
                "mend the source's path or files, or set its `max_reject` to 1"
            )
        rejected.unlink(missing_ok=True)
        _flush(tar)
        _flush(listed)
        digest = _sha256(tar)
        tar.replace(out_tar)
        listed.replace(out_ledger)
    finally:
        tar.unlink(missing_ok=True)
        listed.unlink(missing_ok=True)
    line = f"{digest}  {out_tar.name}\n"
    write_beside(checksum_of(out_tar), lambda beside: beside.write_text(line))
    return counts


def checksum_of(tar: Path) -> Path:
    """The file with a shard's SHA-256, as `sha256sum` writes it."""
    return tar.with_name(tar.name + ".sha256")


def _part(path: Path) -> Path:
    """What `path` is called while it is written, by this process alone; what a killed one left is removed."""
    name, host = f".{path.name}.", socket.gethostname()
    for left in path.parent.glob(f"{name}*.{host}.part"):
        if not _alive(int(left.name[len(name) :].split(".")[0])):
            left.unlink(missing_ok=True)
    return path.with_name(f"{name}{os.getpid()}.{host}.part")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    """To disk: it is about to be renamed, and counts as finished then."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(
    results: Iterator[tuple[Row, Decoded | MediaError]], total: int, source: str, kind: str, prompt: str,
    out_tar: Path, tar: Path, listed: Path,
) -> Counter:  # fmt: skip
    """Write samples to `tar` and lines to `listed`; returns how many by reason."""
    counts: Counter = Counter()
    progress = RowProgress(f"shard {source}/{out_tar.stem}", total)
    with tar.open("wb") as tar_file, listed.open("w", encoding="utf-8") as lines, open_tar(tar_file) as writer:
        for row, result in results:
            key = f"{source}-{row.number:07d}"
            about = {"source": source, "kind": kind, "row": row.number, "file": row.file}
            if isinstance(result, MediaError):
                line = ledger.ledger_line(**about, reason=result.reason, message=str(result))
                counts[result.reason] += 1
            else:
                writer.write(_members(row, result, key, source, kind, prompt))
                made = {"frames": len(result.jpegs), "duration_s": result.duration_s, "codec": result.codec}
                line = ledger.ledger_line(**about, key=key, shard=out_tar.name, **made)
                counts["kept"] += 1
            lines.write(line)
            progress.step(f"{counts.total() - counts['kept']} rejected")
    return counts


def open_tar(file):
    """A TarWriter whose bytes depend on the samples alone."""
    from webdataset.writer import TarWriter  # here because it imports torch

    return TarWriter(file, encoder=False, mtime=0, user="", group="")


def _with_images(rows: list[Row], kind: str) -> list[tuple[Row, tuple[Media, ...]]]:
    """Each row with the media to decode: none of a bad row, none of text; images where the kind says so."""
    found = []
    for row in rows:
        media = () if row.problem is not None or kind == "text" else row.media
        if kind in ("image", "preference"):
            media = tuple(m if m.image else Media(m.file, True, m.content, m.inside, m.offset, m.size) for m in media)
        found.append((row, media))
    return found


def _decoded(
    pool: DecodePool, rows: list[tuple[Row, tuple[Media, ...]]], kind: str, ahead: int
) -> Iterator[tuple[Row, Decoded | MediaError]]:
    """Rows in order with what became of them; each file is decoded once, however many rows name it."""
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
    """The sample's frames, of one video or of all its images; or what is wrong with the first that gives none."""
    if row.problem is not None:
        return MediaError(row.reason, row.problem)
    if kind == "preference" and "chosen" not in row.text:
        return MediaError("bad_row", "no `chosen` and `rejected` answers")
    if kind == "text":
        return Decoded([], [], 0.0, "text")
    if not futures:
        return MediaError("bad_row", "no image or video; `kind: text` is for rows without")
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
    """One sample as webdataset writes it: `000.jpg`, `001.jpg`, ... and `json`."""
    described = _text(row, prompt) | {
        "source": source,
        "kind": kind,
        "frame_count": len(decoded.jpegs),
        "frame_times": row.extra.get("frame_times", decoded.times_s),
        "file": row.file,
    }
    if len(row.media) > 1:
        described["files"] = [media.file for media in row.media]
    if row.media and row.media[0].span_s is not None:
        described["span_s"] = list(row.media[0].span_s)
    described |= {name: value for name, value in row.extra.items() if name not in described}
    images = {f"{i:03d}.jpg": jpeg for i, jpeg in enumerate(decoded.jpegs)}
    return {"__key__": key, **images, "json": json.dumps(described, ensure_ascii=False).encode()}


def _text(row: Row, prompt: str) -> dict:
    if "caption" not in row.text:
        return row.text | ({"assistant": row.text["chosen"]} if "chosen" in row.text else {})
    asked = {"user": row.prompt or prompt}
    # A file of a bare folder may have no caption; without an answer an index leaves its sample out.
    return asked | ({"assistant": row.text["caption"]} if row.text["caption"] else {})


class RowProgress:
    """A line on standard error now and then: how far, how fast, how long still."""

    def __init__(self, what: str, total: int, every_s: float = 5) -> None:
        self.what, self.total, self.every_s, self.done = what, total, every_s, 0
        self.start = self.last = time.monotonic()

    def step(self, note: str) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.last < self.every_s and self.done < self.total:
            return
        self.last = now
        rate = self.done / max(now - self.start, 1e-9)
        left_s = (self.total - self.done) / rate
        line = f"{self.what}: {self.done}/{self.total} rows, {rate:.1f}/s, {left_s:.0f} s left, {note}"
        print(line, file=sys.stderr, flush=True)


def shard_paths(out: Path, number: int) -> tuple[Path, Path]:
    """The tar and the ledger of a shard."""
    return out / f"{number:05d}.tar", out / f"{number:05d}.ledger.jsonl"


def is_complete(tar: Path, listed: Path) -> bool:
    """Whether a shard is finished: its checksum is written last."""
    return tar.is_file() and listed.is_file() and checksum_of(tar).is_file()


def make_numbered(args: argparse.Namespace, number: int, rows: list[Row]) -> Counter:
    """One shard of the command line's source.

    A last one that is not full may keep nothing: that says little of the source. So may any later tar of video2dataset.
    """
    remainder = number > 0 and len(rows) < rows_per_shard(args.reader, args.samples_per_shard)
    return make_shard(
        rows, args.folder, args.name, args.kind, args.prompt, *shard_paths(args.out, number),
        args.processes, args.deadline, remainder or args.max_reject == 1, args.backend, not args.squash,
    )  # fmt: skip
