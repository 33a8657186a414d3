"""The benchmark of the decoders runs on every way that is installed with the package."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "decode.py"


def test_quick_run(tmp_path):
    ways = ["fvlm", "PyAV, all frames", "ffmpeg program"]
    arguments = ["--quick", "--clips", tmp_path, "--json", tmp_path / "out.json", "--ways", *ways]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=True)
    result = json.loads((tmp_path / "out.json").read_text())["results"][0]
    assert result["problems"] == {}
    assert set(result["seconds"]) == {*ways, "needed packets", "needed + scale + JPEG"}
    assert set(result["frames"].values()) == {2}
    assert "| H.264 |" in done.stdout
