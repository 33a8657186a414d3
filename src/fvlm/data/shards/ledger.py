"""Merge the ledgers of shards and indices into one line per input and a table of counts."""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.data.sources import ledgers_of
from fvlm.errors import UserError
from fvlm.files import write_beside
from fvlm.records import write_csv

COLUMNS = ("source", "kind", "status", "reason", "count", "frames", "hours")
NEEDED = {"source", "kind", "row", "file", "status", "reason", "key", "shard", "frames", "duration_s"}


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
    """Return the line of one input in a ledger; the input was rejected if there is a `reason` (`media.REASONS`).

    row         row of the source's table; in the ledger of an index the number of the sample in the source
    key, shard  place of the sample; a rejected input has them only in the ledger of an index
    """
    entry = {"file": file, "row": row, "status": "rejected" if reason else "kept", "reason": reason, "message": message}
    entry |= {"key": key, "shard": shard, "frames": frames, "duration_s": duration_s, "codec": codec}
    return _as_line(entry | {"source": source, "kind": kind}).decode()


def _as_line(entry: dict) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def check_rejects(source: str, counts: Counter, max_reject: float, where: Path | str) -> None:
    """Refuse a source with too many rejected inputs.

    counts      number of inputs by reason, and of "kept" inputs
    max_reject  largest share that may be rejected
    where       the ledger, for the message
    raises      UserError with the five commonest reasons
    """
    total, rejected = counts.total(), counts.total() - counts["kept"]
    if rejected <= max_reject * total:
        return
    reasons = Counter({reason: count for reason, count in counts.items() if reason != "kept"})
    common = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(5))
    raise UserError(
        f"source {source!r}: {rejected} of {total} rows rejected ({common}), expected at most {max_reject:.0%}; "
        f"read {where}, correct the files or raise `max_reject`"
    )


def add_up(ledgers: list[Path], out: Path, table: Path) -> list[dict]:
    """Merge ledgers into `out` and write counts by source, status and reason to `table`.

    A sample that a shard's ledger keeps and an index's ledger rejects is listed and counted once, as rejected.
    Memory: one bit per input, and one line per sample that an index rejects.

    returns     the rows of the table; hours are the duration of the decoded videos
    raises      UserError for a line that is no ledger entry, or an input that is listed twice
    """
    totals: dict[tuple, list[float]] = defaultdict(lambda: [0, 0, 0.0])

    def merge(beside: Path) -> None:
        with beside.open("wb") as merged:
            for entry, line in _once(ledgers):
                total = totals[entry["source"], entry["kind"], entry["status"], entry["reason"] or ""]
                total[0] += 1
                total[1] += entry["frames"]
                total[2] += entry["duration_s"] / 3600
                merged.write(line)

    write_beside(out, merge)
    rows = [
        dict(zip(COLUMNS, (*group, count, frames, round(hours, 6)), strict=True))
        for group, (count, frames, hours) in sorted(totals.items())
    ]
    write_csv(table, rows, COLUMNS)
    return rows


def _mark(bits: bytearray, row: int) -> bool:
    """Set the bit of a row; return whether it was new."""
    byte, bit = divmod(row, 8)
    if byte >= len(bits):
        bits.extend(bytes(byte + 1 - len(bits) + len(bits) // 4))  # grow in large steps
    new = not bits[byte] >> bit & 1
    bits[byte] |= 1 << bit
    return new


def _once(ledgers: list[Path]) -> Iterator[tuple[dict, bytes]]:
    """Each input once, with its line; the line of an index that rejects a sample replaces the line of its shard."""
    marked = entries_of(ledgers, b'"rejected"')
    rejected = {_place(entry): line for _, entry, line in marked if _rejected_by_index(entry)}
    seen: dict[str, bytearray] = defaultdict(bytearray)  # the rows that were read already, one bit each
    for where, entry, line in entries_of(ledgers):
        if _rejected_by_index(entry):
            continue
        if not _mark(seen[entry["source"]], entry["row"]):
            raise UserError(
                f"{where}: row {entry['row']} of {entry['source']!r} is listed twice; make its shards again"
            )
        later = rejected.pop(_place(entry), None) if entry["key"] is not None else None
        if later is not None:
            entry = json.loads(later) | {"file": entry["file"], "row": entry["row"]}
            line = _as_line(entry)
        yield entry, line
    for line in rejected.values():  # samples of downloaded shards
        yield json.loads(line), line


def entries_of(ledgers: list[Path], marked: bytes = b"") -> Iterator[tuple[str, dict, bytes]]:
    """(place, entry, line) of each line that holds the bytes `marked`; raises UserError if it is no ledger entry."""
    for ledger in ledgers:
        with ledger.open("rb") as file:
            for number, line in enumerate(file, 1):
                if marked not in line:
                    continue
                try:
                    entry = json.loads(line)
                    missing = NEEDED - entry.keys()
                except (ValueError, AttributeError) as error:  # AttributeError: JSON, but not an object
                    raise UserError(f"{ledger}: line {number} is no entry ({error}); make it again") from error
                if missing:
                    raise UserError(f"{ledger}: line {number} lacks {', '.join(sorted(missing))}; make it again")
                yield f"{ledger}: line {number}", entry, line if line.endswith(b"\n") else line + b"\n"


def _rejected_by_index(entry: dict) -> bool:
    """Return whether an index rejected the sample; an input that was rejected earlier has no key."""
    return entry["status"] == "rejected" and entry["key"] is not None


def _place(entry: dict) -> tuple[str, str, str]:
    return entry["source"], entry["shard"], entry["key"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ledgers", nargs="*", type=Path, help="ledgers of shards and indices (none: an empty table)")
    parser.add_argument("--of-study", action="store_true", help="use the ledgers of all sources of a study")
    parser.add_argument("--out", type=Path, required=True, help="file for all entries (JSONL)")
    parser.add_argument("--table", type=Path, required=True, help="file for the counts (CSV)")
    add_study_arguments(parser)


def main(args: argparse.Namespace) -> None:
    ledgers = [Path(path) for path in ledgers_of(study_of(args))] if args.of_study else args.ledgers
    add_up(ledgers, args.out, args.table)
