"""The benchmark of answering runs, and a frame adds its visual tokens to the cache and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "ask.py"


def test_a_frame_adds_one_entry_to_the_cache_or_sixteen(tmp_path):
    command = [sys.executable, SCRIPT, "--quick", "--json", tmp_path / "out.json"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert printed.count("\n|") == 2 + 4 and [result["frames"] for result in results] == [2, 9]
    for result in results:
        ways, frames = result["ways"], result["frames"]
        assert ways["foveated"]["entries"] == frames and ways["16 pooled"]["entries"] == 16 * frames
        assert ways["16 pooled"]["bytes"] == 16 * ways["foveated"]["bytes"] > 0
        assert all(value > 0 for way in ways.values() for value in way.values())
