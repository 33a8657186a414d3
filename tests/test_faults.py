"""Each fault of docs/reliability.md once, and that it ends as the page says."""

import os
import random
import subprocess

import pytest

from tests.faults.__main__ import PAGE, rows_of
from tests.faults.every import CASES, UNHARMED
from tests.faults.tiny import Tiny, undisturbed

TABLE = rows_of(PAGE.read_text())
NEEDS_MOUNT = ("the disk full", "the results folder read-only", "the disk full under two ranks",
               "the disk full under Snakemake")  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Tiny:
    return undisturbed(tmp_path_factory.mktemp("faults") / "world")


def may_mount(folder) -> bool:
    """Whether this is a root that may mount: in a container it may not."""
    done = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=False).returncode == 0
    if done:
        subprocess.run(["umount", folder], check=True)
    return done


@pytest.mark.parametrize("name", CASES)
def test_a_fault_ends_as_the_page_says(world, tmp_path, name):
    if name in NEEDS_MOUNT and not may_mount(tmp_path):
        pytest.skip("a disk of its own needs a root that may mount one")
    outcome = CASES[name][1](world, tmp_path / "study", random.Random(7))
    assert outcome in {UNHARMED, *(said for fault, _, said in TABLE if fault == name)}


def test_the_page_has_every_fault_as_often_as_it_says():
    times = {name: sum(count for fault, count, _ in TABLE if fault == name) for name in CASES}
    assert {fault for fault, *_ in TABLE} == set(CASES)
    whole = max(times.values())
    assert whole >= 20 and times == {name: max(1, whole // share) for name, (share, _) in CASES.items()}
