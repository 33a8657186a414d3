"""Add up the ledgers of shards and indices: one line per input, and a table of counts."""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from fvlm.errors import UserError

COLUMNS = ("source", "kind", "status", "reason", "count", "frames", "hours")


def ledger_line(
    *,
    source: str,
    kind: str,
    row: int,
    file: str | None,
    reason: str | None = None,
    message: str | None = None,
    key: str | None = None,
    shard: str | None = None,
    frames: int = 0,
    duration_s: float = 0.0,
    codec: str | None = None,
) -> str:
    """One input as all ledgers list it; it was rejected if there is a `reason`, one of `media.REASONS`.

    row         of the source's table; in an index's ledger the number of the sample within the source
    key, shard  where the sample is; only an index's ledger has them for a rejected one
    """
    entry = {"file": file, "row": row, "status": "rejected" if reason else "kept", "reason": reason, "message": message}
    entry |= {"key": key, "shard": shard, "frames": frames, "duration_s": duration_s, "codec": codec}
    return json.dumps(entry | {"source": source, "kind": kind}, ensure_ascii=False) + "\n"


def add_up(ledgers: list[Path], out: Path, table: Path) -> list[dict]:
    """Concatenate ledgers into `out` and write counts by source, status and reason to `table`.

    A sample that a shard's ledger keeps and an index's ledger rejects is listed and counted once, as rejected.

    returns     the rows of the table; hours are of video, as decoded
    raises      UserError for a line that is no ledger entry, or an input that is listed twice
    """
    totals: dict[tuple, list[float]] = defaultdict(lambda: [0, 0, 0.0])
    part = _beside(out)
    with part.open("w", encoding="utf-8") as merged:
        for entry in _once(ledgers):
            group = (entry["source"], entry["kind"], entry["status"], entry["reason"] or "")
            amounts = (1, entry["frames"], entry["duration_s"] / 3600)
            totals[group] = [a + b for a, b in zip(totals[group], amounts, strict=True)]
            merged.write(json.dumps(entry, ensure_ascii=False) + "\n")
    rows = [
        dict(zip(COLUMNS, (*group, count, frames, round(hours, 6)), strict=True))
        for group, (count, frames, hours) in sorted(totals.items())
    ]
    table_part = _beside(table)
    with table_part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(out)
    table_part.replace(table)
    return rows


def _once(ledgers: list[Path]) -> Iterator[dict]:
    """Every input once: where an index rejected a sample, its line takes the place of the shard's."""
    left_out = {_place(entry): entry for _, entry in _entries(ledgers) if _left_out(entry)}
    seen: set[tuple[str, int]] = set()
    for where, entry in _entries(ledgers):
        if _left_out(entry):
            continue
        identity = (entry["source"], entry["row"])
        if identity in seen:
            raise UserError(f"{where}: row {identity[1]} of {identity[0]!r} is twice there")
        seen.add(identity)
        later = left_out.pop(_place(entry), None)
        yield entry if later is None else later | {"file": entry["file"], "row": entry["row"]}
    yield from left_out.values()  # of foreign shards


def _entries(ledgers: list[Path]) -> Iterator[tuple[str, dict]]:
    """Where a line stands, and what it says; raises UserError if it is no ledger entry."""
    wanted = {"source", "kind", "row", "file", "status", "reason", "key", "shard", "frames", "duration_s"}
    for ledger in ledgers:
        with ledger.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    entry = json.loads(line)
                    lacks = wanted - entry.keys()
                except (json.JSONDecodeError, AttributeError) as error:
                    raise UserError(f"{ledger}: line {number} is no entry ({error}); make it again") from error
                if lacks:
                    raise UserError(f"{ledger}: line {number} lacks {', '.join(sorted(lacks))}; make it again")
                yield f"{ledger}: line {number}", entry


def _left_out(entry: dict) -> bool:
    """Whether an index rejected it: what a shard's ledger rejects never became a sample with a key."""
    return entry["status"] == "rejected" and entry["key"] is not None


def _place(entry: dict) -> tuple[str, str, str]:
    return entry["source"], entry["shard"], entry["key"]


def _beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + ".part")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ledgers", nargs="*", type=Path, help="of shards and indices; none: an empty table")
    parser.add_argument("--out", type=Path, required=True, help="all entries, JSONL")
    parser.add_argument("--table", type=Path, required=True, help="counts, CSV")


def main(args: argparse.Namespace) -> None:
    add_up(args.ledgers, args.out, args.table)
