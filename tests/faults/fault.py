"""Shared by all faults: the list of faults, the names of their outcomes, and a small disk."""

import contextlib
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.tiny import Tiny

SAME = "resumes and ends with the same bytes"
REFUSED = "one error message that names the file; after repair, the same bytes"
NO_FAULT = "the fault did not occur: the job had already finished (same bytes)"
BEFORE_TRAINING = ("tokenizer", "shards", "index", "ledger.jsonl", "tables/data.csv")

Case = Callable[[Tiny, Path, random.Random], str]
CASES: dict[str, tuple[int, Case]] = {}


def fault(name: str, share: int = 1) -> Callable[[Case], Case]:
    """Add a function to the faults of the table; it runs once while others run `share` times."""

    def add(case: Case) -> Case:
        CASES[name] = (share, case)
        return case

    return add


@contextlib.contextmanager
def small_disk(path: Path, kilobytes: int) -> Iterator[Callable[[str], None]]:
    """Mount a file system at `path`; yields a function that mounts it again with other options."""
    path.mkdir(parents=True)

    def mount(*options: str) -> None:
        subprocess.run(["mount", *options, str(path)], check=True, capture_output=True)

    mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs")
    try:
        yield lambda options: mount("-o", f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, capture_output=True)


def log_elsewhere(tiny: Tiny, *names: str) -> None:
    """Put log files on a disk that can be written."""
    for name in names:
        beside = tiny.folder.parent.with_name(f"{tiny.folder.parent.name}-{name}")
        (tiny.folder / name).symlink_to(beside)
