"""Loading reads only the needed bytes, from any step on, and its memory stays flat."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from fvlm.data.batches.loader import load_steps
from fvlm.errors import UserError
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def loading():
    """The benchmark as a module: it makes the shards and measures the memory."""
    spec = importlib.util.spec_from_file_location("loading", ROOT / "benchmarks/loading.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["loading"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["loading"]


@pytest.fixture(scope="module")
def material(loading, tmp_path_factory):
    material = loading.make_material(tmp_path_factory.mktemp("material"), loading.mixture(48))
    list(load_steps(material.steps(), workers=2))  # libraries and threads read files and take memory at first
    return material


def bytes_read() -> int:
    """Bytes that this process has read from files, counted by the kernel."""
    with open("/proc/self/io") as file:
        return int(dict(line.split(": ") for line in file)["rchar"])


@pytest.mark.parametrize("first", [0, 1, 5, 11])
def test_resuming_from_any_step_reads_only_the_remaining_samples(material, first):
    steps = material.steps(batch_size=4)
    rows = steps.order.row[4 * first :]
    wanted = int(material.index.length[rows].sum())
    own = bytes_read()
    own = bytes_read() - own  # the cost of one look
    before = bytes_read()
    keys = [key for batches in load_steps(steps, first) for batch in batches for key in batch.keys]
    assert bytes_read() - before - own == pytest.approx(wanted, abs=64)  # the file with the count varies in length
    assert sorted(keys) == sorted(material.index.keys[rows].tolist())


@pytest.mark.parametrize("claimed", [-1, 1])
def test_an_index_that_does_not_fit_its_shard_is_named(material, claimed):
    steps = material.steps(batch_size=4)
    frames = steps.corpus.indices[0].frames
    number = int(np.flatnonzero(frames > 1)[0])
    true = int(frames[number])
    frames[number] += claimed
    place = int(np.flatnonzero(steps.order.row == number)[0])
    try:
        with pytest.raises(
            UserError, match=rf"tar: sample .* {true} images, expected {true + claimed}.*delete the index"
        ):
            steps.batch([place])
    finally:
        frames[number] = true


def grown_kb(loading, steps, workers: int) -> float:
    """Growth of the memory per sample in KB (2^10 bytes), after the first third."""
    memory = loading.memory_over(steps, workers, points=30)
    start, end = (np.median(part) for part in (memory[10:15], memory[-5:]))
    return (end - start) * 1024 / (len(steps.order) * 18 / 30)


def test_memory_stays_flat(loading, tmp_path):
    """Over 6,000 samples; the same measurement detects a leak of 1 KB per sample."""
    material = loading.make_material(tmp_path, [1] * 60)
    for workers in (0, 2):
        assert grown_kb(loading, material.steps(6000), workers) < 0.4, workers
    leaking, kept = material.steps(6000), []
    samples = leaking.samples

    def samples_and_keep(*arguments):
        kept.append(np.ones(1024, np.uint8))
        return samples(*arguments)

    leaking.samples = samples_and_keep
    assert grown_kb(loading, leaking, 0) > 0.8


def test_the_benchmark_runs(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks/loading.py"), "--quick", "--json", str(tmp_path / "x.json")]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(table) == 2 + 9
    shards = json.loads((tmp_path / "x.json").read_text())["shards"]
    for name, result in shards.items():
        assert result["pixel_difference"] <= 3 and 10 < result["frame_kb"] < 20, name
        assert result["sides"]["fvlm"]["ratio"] == 1 and len(result["sides"]) == 3
