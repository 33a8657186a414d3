"""Turn rows of a table into one WebDataset shard and its ledger, which lists every row exactly once."""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from fvlm.data.decode_pool import Decoded, DecodePool, decode_to_jpegs
from fvlm.data.ledger import ledger_line
from fvlm.data.media import MediaError
from fvlm.data.readers import Row, count_rows, read_rows
from fvlm.errors import UserError

READ_AHEAD = 8  # files per process that may be decoded before the row that is written


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
    max_reject: float = 0.5,
    backend: str = "pyav",
) -> Counter:
    """Decode some rows of a source and write the shard and its ledger, both beside and then renamed.

    rows        what goes into this shard, at least one; their numbers are those of the source's whole table
    kind        "video", "image", "text" or "preference"
    prompt      what the user asks where a row has only a caption
    max_reject  a larger share of rejected rows fails the shard; its ledger is then `{out_ledger}.rejected`
    returns     how many rows by reason; "kept" counts the kept ones
    raises      UserError when too much was rejected
    """
    out_tar.parent.mkdir(parents=True, exist_ok=True)
    out_ledger.parent.mkdir(parents=True, exist_ok=True)
    tar, ledger = out_tar.with_name(out_tar.name + ".part"), out_ledger.with_name(out_ledger.name + ".part")
    counts: Counter = Counter()
    decode = partial(decode_to_jpegs, kind=kind, backend=backend)
    progress = Progress(f"shard {source_name}/{out_tar.stem}", len(rows))
    with (
        DecodePool(decode, processes, deadline_s) as pool,
        tar.open("wb") as tar_file,
        ledger.open("w", encoding="utf-8") as ledger_file,
        open_tar(tar_file) as writer,
    ):
        for row, result in _decoded(pool, rows, folder, kind, READ_AHEAD * processes):
            key = f"{source_name}-{row.number:07d}"
            about = {"source": source_name, "kind": kind, "row": row.number, "file": row.file}
            if isinstance(result, MediaError):
                message = str(result).replace(f"{folder}{os.sep}", "")  # the same wherever the folder stands
                line = ledger_line(**about, reason=result.reason, message=message)
                counts[result.reason] += 1
            else:
                writer.write(_members(row, result, key, source_name, kind, prompt))
                made = {"frames": len(result.jpegs), "duration_s": result.duration_s, "codec": result.codec}
                line = ledger_line(**about, key=key, shard=out_tar.name, **made)
                counts["kept"] += 1
            ledger_file.write(line)
            progress.step(f"{counts.total() - counts['kept']} rejected")
    if counts.total() != len(rows):
        raise RuntimeError(f"{out_tar}: {len(rows)} rows, {counts.total()} in the ledger")
    rejected = counts.total() - counts["kept"]
    if rejected > max_reject * len(rows):
        kept_ledger = out_ledger.with_name(out_ledger.name + ".rejected")
        ledger.replace(kept_ledger)
        tar.unlink()
        common = ", ".join(f"{reason} {count}" for reason, count in _rejections(counts).most_common(5))
        raise UserError(
            f"source {source_name!r}: {rejected} of {len(rows)} rows rejected ({common}), at most "
            f"{max_reject:.0%} may be; read {kept_ledger}, mend the files or raise `max_reject`"
        )
    tar.replace(out_tar)
    ledger.replace(out_ledger)
    return counts


def open_tar(file):
    """A TarWriter whose bytes depend on the samples alone."""
    from webdataset.writer import TarWriter  # here because it imports torch

    return TarWriter(file, encoder=False, mtime=0, user="", group="")


def _rejections(counts: Counter) -> Counter:
    return Counter({reason: count for reason, count in counts.items() if reason != "kept"})


def _decoded(
    pool: DecodePool, rows: list[Row], folder: Path, kind: str, ahead: int
) -> Iterator[tuple[Row, Decoded | MediaError]]:
    """Rows in order with what became of them; each file is decoded once, however many rows name it."""
    uses = Counter(row.file for row in rows if _wants_file(row, kind))
    futures: dict[str, Future[Decoded]] = {}
    submitted = 0
    for i, row in enumerate(rows):
        while submitted < len(rows) and submitted <= i + ahead:
            upcoming = rows[submitted]
            if _wants_file(upcoming, kind) and upcoming.file not in futures:
                futures[upcoming.file] = pool.submit(folder / upcoming.file)
            submitted += 1
        yield row, _outcome(row, kind, futures)
        if _wants_file(row, kind):
            uses[row.file] -= 1
            if not uses[row.file]:
                del futures[row.file]


def _wants_file(row: Row, kind: str) -> bool:
    return row.problem is None and row.file is not None and kind != "text"


def _outcome(row: Row, kind: str, futures: dict[str, Future[Decoded]]) -> Decoded | MediaError:
    if row.problem is not None:
        return MediaError("bad_row", row.problem)
    if kind == "preference" and "chosen" not in row.text:
        return MediaError("bad_row", "no `chosen` and `rejected` answers")
    if kind == "text":
        return Decoded([], [], 0.0, "text")
    if row.file is None:
        return MediaError("bad_row", "`file` is empty")
    try:
        return futures[row.file].result()
    except MediaError as error:
        return error


def _members(row: Row, decoded: Decoded, key: str, source: str, kind: str, prompt: str) -> dict:
    """One sample as webdataset writes it: `000.jpg`, `001.jpg`, ... and `json`."""
    if "messages" in row.text:
        text = {"messages": row.text["messages"]}
    elif "caption" in row.text:
        text = {"user": row.prompt or prompt, "assistant": row.text["caption"]}
    elif "chosen" in row.text:
        text = {**row.text, "assistant": row.text["chosen"]}
    else:
        text = row.text
    described = {
        **text,
        "source": source,
        "kind": kind,
        "frame_count": len(decoded.jpegs),
        "frame_times": decoded.times_s,
        "file": row.file,
    }
    images = {f"{i:03d}.jpg": jpeg for i, jpeg in enumerate(decoded.jpegs)}
    return {"__key__": key, **images, "json": json.dumps(described, ensure_ascii=False).encode()}


class Progress:
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder with the media files and their table")
    parser.add_argument("--table", default="samples.jsonl", help="CSV or JSONL inside the folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for 00000.tar, 00000.ledger.jsonl, ...")
    parser.add_argument("--name", help="name of the source (default: the folder's)")
    parser.add_argument("--kind", choices=("video", "image", "text", "preference"), default="video")
    parser.add_argument("--prompt", default="Describe the video.", help="asked where a row has only a caption")
    parser.add_argument("--samples-per-shard", type=int, default=1000)
    parser.add_argument("--shard", type=int, help="only this one, counted from 0")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--deadline", type=float, default=60, help="seconds for one file")
    parser.add_argument("--max-reject", type=float, default=0.5, help="largest share of rejected rows")
    parser.add_argument("--backend", default="pyav", help="pyav, decord or ffmpeg")


def main(args: argparse.Namespace) -> None:
    """Shard a whole folder, or make one shard of it; a shard that is there already with its ledger is kept."""
    name, size = args.name or args.folder.resolve().name, args.samples_per_shard
    table = read_rows(args.folder, args.table) if args.shard is None else []
    for number in range(-(-len(table) // size)) if args.shard is None else [args.shard]:
        tar, ledger = args.out / f"{number:05d}.tar", args.out / f"{number:05d}.ledger.jsonl"
        if tar.exists() and ledger.exists():
            print(f"{tar} is there", file=sys.stderr)
            continue
        here = table[number * size : (number + 1) * size]
        rows = here or rows_of_shard(args.folder, args.table, number, size)
        make_shard(
            rows, args.folder, name, args.kind, args.prompt, tar, ledger,
            args.processes, args.deadline, args.max_reject, args.backend,
        )  # fmt: skip


def rows_of_shard(folder: Path, table: str, number: int, size: int) -> list[Row]:
    """Rows of shard `number` alone; raises UserError if the table has none for it."""
    start = number * size
    rows = read_rows(folder, table, start, start + size) if start >= 0 else []
    if not rows:
        count = count_rows(folder, table)
        raise UserError(
            f"{folder / table}: shard {number} starts at row {start} (counted from 0), but the table has {count} rows; "
            f"if `samples:` in config/sources.yaml says more than {count}, lower or remove it"
        )
    return rows
