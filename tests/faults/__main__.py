"""Inject every fault and write the outcomes into docs/reliability.md.

python -m tests.faults --times 20
"""

import argparse
import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.conftest import ROOT
from tests.faults.every import CASES
from tests.faults.tiny import undisturbed

PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- python -m tests.faults -->\n", "<!-- end -->\n"
SEED = 1  # of the first time, 2 of the second, ...


def table(outcomes: dict[str, Counter]) -> str:
    """Return the Markdown table: fault, number of times, outcome."""
    lines = ["| fault | times | outcome |", "| --- | ---: | --- |"]
    for name, counts in outcomes.items():
        for outcome, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"| {name} | {count} | {outcome} |")
    return "\n".join(lines) + "\n"


def rows_of(page: str) -> list[tuple[str, int, str]]:
    """Return the rows of the table in the page: fault, number of times, outcome."""
    part = page.split(BEGIN)[1].split(END)[0]
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (.+?) \|$", part, re.MULTILINE)
    return [(fault, int(times), outcome) for fault, times, outcome in rows]


def main(times: int, only: str) -> None:
    outcomes: dict[str, Counter] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = undisturbed(Path(folder) / "world")
        for name, (share, case) in CASES.items():
            if only not in name:
                continue
            start, outcomes[name] = time.monotonic(), Counter()
            for i in range(max(1, times // share)):
                outcome = case(world, Path(folder) / f"{case.__name__}-{i}", random.Random(SEED + i))
                outcomes[name][outcome] += 1
            print(f"{time.monotonic() - start:6.0f} s  {name}: {dict(outcomes[name])}", file=sys.stderr, flush=True)
    if only:
        print(table(outcomes))
        return
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + table(outcomes) + END + rest.split(END)[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--only", default="", help="only faults whose name contains this; writes no page")
    arguments = parser.parse_args()
    main(arguments.times, arguments.only)
