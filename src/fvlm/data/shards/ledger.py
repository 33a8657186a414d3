"""Add up the ledgers of shards and indices: one line per input, and a table of counts."""

import argparse
import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.data.sources import ledgers_of
from fvlm.errors import UserError
from fvlm.files import write_beside

COLUMNS = ("source", "kind", "status", "reason", "count", "frames", "hours")
WANTED = {"source", "kind", "row", "file", "status", "reason", "key", "shard", "frames", "duration_s"}


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
    return _as_line(entry | {"source": source, "kind": kind}).decode()


def _as_line(entry: dict) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def check_rejects(source: str, counts: Counter, max_reject: float, where: Path | str) -> None:
    """Refuse a source of which too much was rejected.

    counts      inputs by reason, "kept" among them
    max_reject  largest share that may be rejected
    where       what the message names for the reason of each: a ledger, or the folder of several
    raises      UserError with the five commonest reasons
    """
    total, rejected = counts.total(), counts.total() - counts["kept"]
    if rejected <= max_reject * total:
        return
    reasons = Counter({reason: count for reason, count in counts.items() if reason != "kept"})
    common = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(5))
    raise UserError(
        f"source {source!r}: {rejected} of {total} rows rejected ({common}), at most {max_reject:.0%} may be; "
        f"read {where}, mend the files or raise `max_reject`"
    )


def add_up(ledgers: list[Path], out: Path, table: Path) -> list[dict]:
    """Concatenate ledgers into `out` and write counts by source, status and reason to `table`.

    A sample that a shard's ledger keeps and an index's ledger rejects is listed and counted once, as rejected.
    Memory grows by a bit per input, and by a line for each sample that an index rejects.

    returns     the rows of the table; hours are of video, as decoded
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
    write_beside(table, lambda beside: _write_table(rows, beside))
    return rows


def _write_table(rows: list[dict], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


class _Seen:
    """Rows of the sources that were there already, a bit each."""

    def __init__(self) -> None:
        self._bits: dict[str, bytearray] = defaultdict(bytearray)

    def add(self, source: str, row: int) -> bool:
        """Whether it is new."""
        bits, (byte, bit) = self._bits[source], divmod(row, 8)
        if byte >= len(bits):
            bits.extend(bytes(byte + 1 - len(bits) + len(bits) // 4))  # by a quarter, to grow seldom
        if bits[byte] >> bit & 1:
            return False
        bits[byte] |= 1 << bit
        return True


def _once(ledgers: list[Path]) -> Iterator[tuple[dict, bytes]]:
    """Every input once, with its line: where an index rejected a sample, that takes the place of the shard's line."""
    left_out = {_place(entry): line for _, entry, line in _entries(ledgers, marked=b'"rejected"') if _left_out(entry)}
    seen = _Seen()
    for where, entry, line in _entries(ledgers):
        if _left_out(entry):
            continue
        if not seen.add(entry["source"], entry["row"]):
            raise UserError(f"{where}: row {entry['row']} of {entry['source']!r} is twice there")
        later = left_out.pop(_place(entry), None) if left_out and entry["key"] is not None else None
        if later is not None:
            entry = json.loads(later) | {"file": entry["file"], "row": entry["row"]}
            line = _as_line(entry)
        yield entry, line
    for line in left_out.values():  # of foreign shards
        yield json.loads(line), line


def _entries(ledgers: list[Path], marked: bytes = b"") -> Iterator[tuple[str, dict, bytes]]:
    """Where a line stands, what it says, and the line; raises UserError if it is no ledger entry.

    marked      only lines that hold these bytes
    """
    for ledger in ledgers:
        with ledger.open("rb") as file:
            for number, line in enumerate(file, 1):
                if marked not in line:
                    continue
                try:
                    entry = json.loads(line)
                    lacks = WANTED - entry.keys()
                except (ValueError, AttributeError) as error:  # no JSON, no UTF-8, no object
                    raise UserError(f"{ledger}: line {number} is no entry ({error}); make it again") from error
                if lacks:
                    raise UserError(f"{ledger}: line {number} lacks {', '.join(sorted(lacks))}; make it again")
                yield f"{ledger}: line {number}", entry, line if line.endswith(b"\n") else line + b"\n"


def _left_out(entry: dict) -> bool:
    """Whether an index rejected it: what a shard's ledger rejects never became a sample with a key."""
    return entry["status"] == "rejected" and entry["key"] is not None


def _place(entry: dict) -> tuple[str, str, str]:
    return entry["source"], entry["shard"], entry["key"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ledgers", nargs="*", type=Path, help="of shards and indices; none: an empty table")
    parser.add_argument("--of-study", action="store_true", help="the ledgers of a study's sources instead")
    parser.add_argument("--out", type=Path, required=True, help="all entries, JSONL")
    parser.add_argument("--table", type=Path, required=True, help="counts, CSV")
    add_study_arguments(parser)


def main(args: argparse.Namespace) -> None:
    ledgers = [Path(path) for path in ledgers_of(study_of(args))] if args.of_study else args.ledgers
    add_up(ledgers, args.out, args.table)
