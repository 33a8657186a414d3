"""Shard a folder without the workflow: all shards, one ledger, and a summary. A stopped command resumes."""

import argparse
import hashlib
import json
import time
from collections import Counter
from itertools import islice
from pathlib import Path

from fvlm.data.progress import Progress
from fvlm.data.readers import READERS, count_rows, files_of, iterate_rows, read_rows, rows_per_shard
from fvlm.data.readers.files import ALL
from fvlm.data.shards import ledger
from fvlm.data.shards.write import is_complete, make_numbered, shard_paths
from fvlm.errors import UserError
from fvlm.files import write_json

MADE_FROM = "made_from.json"  # in the output folder: the inputs and settings of the shards
TEXTS = (".csv", ".jsonl", ".json", ".txt")  # compared by content, since a correction may keep the size


def shard_folder(args: argparse.Namespace) -> None:
    """Make the missing shards, then `ledger.jsonl` and `data.csv`.

    args        arguments of `fvlm shard`, with reader, table and name filled in
    raises      UserError if too many rows were rejected, or the output folder holds shards of other inputs
    """
    start_s = time.monotonic()
    total = count_rows(args.folder, args.table, args.reader)
    if args.reader == "files" and args.table == ALL:
        print(f"no table: every file in {args.folder} is an input; a .txt beside it is its caption")
    if not total:
        raise UserError(f"{args.folder / args.table}: no rows, expected at least one; correct the folder or --table")
    _check_same(args)
    tars = READERS[args.reader].rows_per_shard and len(files_of(args.folder, args.table, args.reader))
    numbers = range(tars or -(-total // args.samples_per_shard))
    missing = [number for number in numbers if not is_complete(*shard_paths(args.out, number))]
    kept = len(numbers) - len(missing)
    print(
        f"{args.name}: {plural(total, 'row')}, {plural(len(numbers), 'shard')}"
        + (f", {kept} of them finished before" if kept else "")
    )
    progress = Progress(args.name, len(missing), "shards", every_s=0)
    for number, rows in _rows_of(args, missing):
        make_numbered(args, number, rows)
        progress.step()
    ledgers = [shard_paths(args.out, number)[1] for number in numbers]
    merged = args.out / "ledger.jsonl"
    table = ledger.add_up(ledgers, merged, args.out / "data.csv")
    lines = sum(row["count"] for row in table)
    # The .parquet beside a tar of video2dataset may list more or fewer rows than the tar holds.
    if lines != total and not READERS[args.reader].rows_per_shard:
        raise UserError(
            f"{merged}: {lines} lines, expected {total} as there were rows: the inputs have changed; delete {args.out}"
        )
    print(summary(args.name, table, time.monotonic() - start_s, args.out))
    counts = Counter()
    for row in table:
        counts[row["reason"] or "kept"] += row["count"]
    ledger.check_rejects(args.name, counts, args.max_reject, merged)


def plural(count: int, unit: str) -> str:
    return f"{count} {unit}" + ("s" if count != 1 else "")


def summary(name: str, table: list[dict], seconds: float, out: Path) -> str:
    """Return counts, frames and time as a few lines of text."""
    kept = [row for row in table if row["status"] == "kept"]
    rejected = sorted((row for row in table if row["status"] == "rejected"), key=lambda row: -row["count"])
    reasons = ", ".join(f"{row['reason']} {row['count']}" for row in rejected)
    lines = [
        f"source    {name}",
        f"kept      {sum(row['count'] for row in kept)}",
        f"rejected  {sum(row['count'] for row in rejected)}" + (f" ({reasons})" if reasons else ""),
        f"frames    {sum(row['frames'] for row in kept)}, of {sum(row['hours'] for row in kept):.2f} h of video",
        f"time      {seconds:.0f} s",
        f"ledger    {out / 'ledger.jsonl'}",
    ]
    return "\n".join(lines)


def _rows_of(args: argparse.Namespace, numbers: list[int]):
    """Number and rows of each of these shards; the table is read once, not for each shard."""
    size = rows_per_shard(args.reader, args.samples_per_shard)
    if READERS[args.reader].rows_per_shard:
        for number in numbers:
            yield number, read_rows(args.folder, args.table, number * size, (number + 1) * size, args.reader)
        return
    rows, place = None, 0
    for number in numbers:
        if number != place or rows is None:
            rows = iterate_rows(args.folder, args.table, number * size, None, args.reader)
        yield number, list(islice(rows, size))
        place = number + 1


def _check_same(args: argparse.Namespace) -> None:
    """Refuse to resume with shards that were made from other inputs or with other settings."""
    names = ("reader", "table", "name", "kind", "prompt", "squash", "samples_per_shard", "backend")
    now = {name: getattr(args, name) for name in names} | {"inputs": _digest(args)}
    path = args.out / MADE_FROM
    if path.is_file() and any(args.out.glob("*.sha256")):
        before = json.loads(path.read_text())
        other = [name for name, value in now.items() if before.get(name) != value]
        if other:
            raise UserError(
                f"{args.out} holds shards of other settings ({', '.join(other)}); use another --out, or delete it"
            )
    write_json(path, now)


def _digest(args: argparse.Namespace) -> str:
    """Digest of the names of the source's tables or files, each with its content (texts) or its size."""
    listed = []
    for path in files_of(args.folder, args.table, args.reader):
        if path.suffix in TEXTS and path.is_file():
            with path.open("rb") as file:
                content: str | int = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            content = path.stat().st_size if path.is_file() else -1
        listed.append([path.relative_to(args.folder).as_posix(), content])
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
