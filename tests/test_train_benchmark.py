"""The benchmark of the training step runs, and compares two models that compute the same loss."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "train_step.py"
WAYS = ["obvious, float32", "fvlm, float32"]


def test_both_sides_compute_the_same_loss_and_gradients(tmp_path):
    command = [sys.executable, SCRIPT, "--quick", "--json", tmp_path / "out.json", "--ways", *WAYS]
    subprocess.run(command, capture_output=True, check=True)
    result = json.loads((tmp_path / "out.json").read_text())["results"][0]
    assert set(result["ways"]) == set(WAYS)
    for case in result["equal"].values():
        assert case["fvlm"] == pytest.approx(case["obvious"], rel=1e-5)
        assert case["gradients"] < 1e-4


def test_the_parts_of_a_step_change_no_loss():
    """The benchmark stops if the first loss with a change is not that of the unchanged step."""
    script = SCRIPT.with_name("step_parts.py")
    names = ["anew", "padded", "all-logits"]
    command = [sys.executable, script, "--quick", "--only", *names]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.count("\n|") == 2 + len(names) and "keys and values computed again by each reading" in printed


def test_a_wrong_side_is_noticed():
    """The batch has text-only samples, repeated images and padding; then one weight differs on one side."""
    script = runpy.run_path(str(SCRIPT))
    run, batches, one = script["inputs"](script["ON_GPU"]["smoke"])
    device = script["torch"].device("cpu")
    script["check"](run, batches, one, device)

    class Moved(script["Side"]):
        def __init__(self, way, *rest):
            super().__init__(way, *rest)
            if not way.ours:
                self.model.connector.q_init.data += 0.1

    script["compare"].__globals__["Side"] = Moved
    with pytest.raises(RuntimeError, match="do not compute the same"):
        script["check"](run, batches, one, device)


def test_the_steps_of_a_gpu_day_run_with_a_tiny_model(tmp_path):
    script = SCRIPT.with_name("gpu_day.sh")
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(["bash", script, tmp_path, "--tiny"], env=environment, capture_output=True, text=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert all(status == 0 for status, _ in found["steps"].values()), ended.stdout
    assert found["resume"]["bit_for_bit"] and found["resume"]["steps"] == 6
    assert set(found["evaluation"]) == {"coarse_only", "coarse_fine", "autoregressive"}
    assert len(found["memory"]) == 2 and "0 problems" in found["preflight"][-1]
    assert "Failed steps: none" in (tmp_path / "gpu.md").read_text()
