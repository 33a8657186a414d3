"""Each fault of docs/reliability.md, injected until it occurs: the outcome must be one of the page's."""

import os
import random
import shutil
import subprocess

import pytest

from tests.faults.__main__ import PAGE, rows_of
from tests.faults.every import CASES, NO_FAULT
from tests.faults.tiny import Tiny, undisturbed

TABLE = rows_of(PAGE.read_text())
SEEDS = range(7, 12)
NEEDS_MOUNT = ("the disk full", "the results folder read-only", "the disk full under two ranks",
               "the disk full under Snakemake")  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Tiny:
    return undisturbed(tmp_path_factory.mktemp("faults") / "world")


def may_mount(folder) -> bool:
    """Return whether this process may mount a disk; in a container root may not."""
    mounts = (
        os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=False).returncode == 0
    )
    if mounts:
        subprocess.run(["umount", folder], check=True)
    return mounts


@pytest.mark.parametrize("name", CASES)
def test_a_fault_occurs_and_ends_as_the_page_says(world, tmp_path, name):
    if name in NEEDS_MOUNT and not may_mount(tmp_path):
        pytest.skip("a disk of its own needs a root that may mount one")
    for seed in SEEDS:
        outcome = CASES[name][1](world, tmp_path / f"study-{seed}", random.Random(seed))
        if outcome != NO_FAULT:
            break
    assert outcome in {documented for fault, _, documented in TABLE if fault == name} - {NO_FAULT}


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def repeat_a_step(path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]))


def leave_a_part(path) -> None:
    path.with_name(".checkpoint.1.part").touch()


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("shards/photos/00000.tar", flip),
        ("index/photos.npz", flip),
        ("ledger.jsonl", repeat_a_step),
        ("runs/stage1/model/best.safetensors", flip),
        ("runs/stage1/state/metrics.jsonl", repeat_a_step),
        ("runs/stage1/state/metrics.jsonl", leave_a_part),
    ],
)
def test_the_comparison_notices_a_changed_file(world, tmp_path, file, damage):
    """A fault could not fail the test above if this comparison passed for a damaged study."""
    tiny = Tiny(tmp_path / "study", world)
    shutil.copytree(world.results, tiny.results)
    tiny.check_same()
    damage(tiny.results / file)
    with pytest.raises(AssertionError):
        tiny.check_same()


def test_the_page_has_every_fault():
    assert {fault for fault, *_ in TABLE} == set(CASES)
