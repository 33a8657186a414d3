"""Faults of the whole workflow."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import yaml

from tests.conftest import CORES, copy_of_workflow
from tests.faults.fault import NO_FAULT, SAME, fault, small_disk
from tests.faults.tiny import Tiny

MOST_OF_DATA = 1200  # kilobytes of the data part, with logs and Snakemake's own notes


def _checkout(world: Tiny, folder: Path):
    """The data part of the study under Snakemake; its targets."""
    workflow = copy_of_workflow(folder / "checkout")
    content = yaml.safe_load((world.folder / "study.yaml").read_text()) | {"results": "results"}
    (workflow.folder / "config/tiny.yaml").write_text(yaml.safe_dump(content))
    return workflow, ("results/ledger.jsonl", "--configfile", "config/tiny.yaml")


def _check_data(world: Tiny, results: Path) -> None:
    for pattern in ("shards/*/*.tar", "index/*.npz", "ledger.jsonl", "tables/data.csv"):
        paths = sorted(world.results.glob(pattern))
        assert [path.relative_to(world.results) for path in paths] == [
            path.relative_to(results) for path in sorted(results.glob(pattern))
        ]
        for path in paths:
            assert (results / path.relative_to(world.results)).read_bytes() == path.read_bytes(), path


@fault("Snakemake and its jobs killed at a random point", share=4)
def killed_workflow(world: Tiny, folder: Path, draw: random.Random) -> str:
    workflow, target = _checkout(world, folder)
    process = workflow.start(*target, start_new_session=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=draw.uniform(2, 25))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    results = workflow.folder / "results"
    done = {path: path.stat().st_mtime_ns for path in results.glob("shards/*/*.sha256")}
    workflow.run(*target)
    _check_data(world, results)
    again = [path for path, when in done.items() if path.stat().st_mtime_ns != when]
    # shards that ended at that very moment are made again, since Snakemake had not noted them: one per job at a time
    assert len(again) <= CORES, f"finished shards were made again: {again}"
    return SAME


@fault("two Snakemakes at once", share=4)
def two_workflows(world: Tiny, folder: Path, draw: random.Random) -> str:
    workflow, target = _checkout(world, folder)
    first = workflow.start(*target)
    time.sleep(draw.uniform(0, 12))
    second = workflow.start(*target)
    output = [process.communicate()[0] for process in (first, second)]
    statuses = sorted(process.returncode for process in (first, second))
    assert statuses in ([0, 0], [0, 1]), output
    if statuses == [0, 1]:
        assert "cannot be locked" in "".join(output), output
    _check_data(world, workflow.folder / "results")
    assert workflow.planned(*target) == {}
    return "the second stops because the folder is locked, or has nothing to do; same bytes"


@fault("the clock jumped: files dated years ahead or back", share=4)
def clock_jump(world: Tiny, folder: Path, draw: random.Random) -> str:
    workflow, target = _checkout(world, folder)
    workflow.run(*target)
    results = workflow.folder / "results"
    files = sorted(path for path in results.rglob("*") if path.is_file())
    for path in draw.sample(files, len(files) // 3):
        moved = path.stat().st_mtime + draw.choice([-1, 1]) * draw.uniform(1, 3 * 365 * 86_400)
        os.utime(path, (moved, moved))
    workflow.run(*target)
    _check_data(world, results)
    return "files that look out of date are made again; same bytes"


@fault("the disk full under Snakemake", share=4)
def full_disk_of_a_workflow(world: Tiny, folder: Path, draw: random.Random) -> str:
    """Somewhere between the first shard and the ledger, now and then for Snakemake itself; then there is room again."""
    with small_disk(folder, 200_000) as mount:
        workflow, target = _checkout(world, folder)
        results = workflow.folder / "results"
        used = shutil.disk_usage(folder).used >> 10
        mount(f"size={used + draw.randrange(MOST_OF_DATA)}k")
        process = workflow.start(*target)
        process.communicate()
        done = {path: path.stat().st_mtime_ns for path in results.glob("shards/*/*.sha256")}
        mount("size=200000k")
        workflow.run(*target)
        _check_data(world, results)
        again = [path for path, when in done.items() if path.stat().st_mtime_ns != when]
        assert len(again) <= 2, f"finished shards were made again: {again}"  # those whose end Snakemake could not note
    return f"Snakemake stops; once there is room, it {SAME}" if process.returncode else NO_FAULT
