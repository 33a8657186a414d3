"""Inject every fault and write what came of it into docs/reliability.md.

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
SEED = 1  # of the first time; the next ones count on


def table(found: dict[str, Counter]) -> str:
    """Fault, how often, and outcomes, as Markdown."""
    lines = ["| fault | times | outcome |", "| --- | ---: | --- |"]
    for name, outcomes in found.items():
        for outcome, count in sorted(outcomes.items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"| {name} | {count} | {outcome} |")
    return "\n".join(lines) + "\n"


def rows_of(page: str) -> list[tuple[str, int, str]]:
    """The table in the page: fault, how often, outcome."""
    part = page.split(BEGIN)[1].split(END)[0]
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (.+?) \|$", part, re.MULTILINE)
    return [(fault, int(times), outcome) for fault, times, outcome in rows]


def main(times: int, only: str) -> None:
    found: dict[str, Counter] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = undisturbed(Path(folder) / "world")
        for name, (share, case) in CASES.items():
            if only not in name:
                continue
            start, found[name] = time.monotonic(), Counter()
            for i in range(max(1, times // share)):
                outcome = case(world, Path(folder) / f"{case.__name__}-{i}", random.Random(SEED + i))
                found[name][outcome] += 1
            print(f"{time.monotonic() - start:6.0f} s  {name}: {dict(found[name])}", file=sys.stderr, flush=True)
    if only:
        print(table(found))
        return
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + table(found) + END + rest.split(END)[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--only", default="", help="faults whose name holds this; printed, the page stays as it is")
    arguments = parser.parse_args()
    main(arguments.times, arguments.only)
