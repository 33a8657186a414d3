"""What the faults have in common: their table, the words for what came of them, and a disk of their own."""

import contextlib
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.tiny import Tiny

SAME = "goes on and ends in the same bytes"
REFUSED = "one sentence that names the file; mended, it ends in the same bytes"
UNHARMED = "not met: it had ended before; the same bytes"
BEFORE_TRAINING = ("tokenizer", "shards", "index", "ledger.jsonl", "tables/data.csv")

Case = Callable[[Tiny, Path, random.Random], str]
CASES: dict[str, tuple[int, Case]] = {}


def fault(name: str, share: int = 1) -> Callable[[Case], Case]:
    """A row of the table; it is done once where others are done `share` times."""

    def add(case: Case) -> Case:
        CASES[name] = (share, case)
        return case

    return add


@contextlib.contextmanager
def small_disk(path: Path, kilobytes: int) -> Iterator[Callable[[str], None]]:
    """A file system of its own at `path`; what is yielded mounts it anew with other options."""
    path.mkdir(parents=True)

    def mount(*options: str) -> None:
        subprocess.run(["mount", *options, str(path)], check=True, capture_output=True)

    mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs")
    try:
        yield lambda options: mount("-o", f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, capture_output=True)


def log_elsewhere(tiny: Tiny, *names: str) -> None:
    """On a disk that can be written."""
    for name in names:
        beside = tiny.folder.parent.with_name(f"{tiny.folder.parent.name}-{name}")
        (tiny.folder / name).symlink_to(beside)
