"""Add up the ledgers of all shards: one line per input, and a table of counts."""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

from fvlm.errors import UserError

COLUMNS = ("source", "kind", "status", "reason", "count", "frames", "hours")


def add_up(ledgers: list[Path], out: Path, table: Path) -> list[dict]:
    """Concatenate ledgers into `out` and write counts by source, status and reason to `table`.

    returns     the rows of the table; hours are of video, as decoded
    raises      UserError for a line that is no ledger entry, or an input that is listed twice
    """
    totals: dict[tuple, list[float]] = defaultdict(lambda: [0, 0, 0.0])
    seen: set[tuple[str, int]] = set()
    part = _beside(out)
    with part.open("w", encoding="utf-8") as merged:
        for ledger in ledgers:
            for number, line in enumerate(ledger.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    entry = json.loads(line)
                    group = (entry["source"], entry["kind"], entry["status"], entry["reason"] or "")
                    identity = (entry["source"], entry["row"])
                    amounts = (1, entry["frames"], entry["duration_s"] / 3600)
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise UserError(f"{ledger}: line {number} is no entry ({error}); make it again") from error
                if identity in seen:
                    raise UserError(f"{ledger}: line {number}: row {identity[1]} of {identity[0]!r} is twice there")
                seen.add(identity)
                totals[group] = [a + b for a, b in zip(totals[group], amounts, strict=True)]
                merged.write(line + "\n")
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


def _beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + ".part")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ledgers", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="all entries, JSONL")
    parser.add_argument("--table", type=Path, required=True, help="counts, CSV")


def main(args: argparse.Namespace) -> None:
    add_up(args.ledgers, args.out, args.table)
