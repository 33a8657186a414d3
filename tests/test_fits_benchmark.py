"""The benchmark of the fits runs, and compares two ways to the same optimum."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "fits.py"


def test_quick_run(tmp_path):
    command = [sys.executable, SCRIPT, "--quick", "--json", tmp_path / "out.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert result["points"] == 24
    assert result["fit"]["starts"] == 30 and result["bootstrap"]["checked"] == 5
    for one in (result["fit"], result["bootstrap"]["plain"], result["bootstrap"]["tight"]):
        assert one["plain_above"] > -1e-9
    assert "| 24 | 0.5% | fit, 30 starts |" in done.stdout


def test_every_part_of_the_rates_is_printed():
    """Few draws: a jump of 3 % is found where the noise is 0.2 %, and the exponent is near the truth without noise."""
    command = [sys.executable, SCRIPT.with_name("rates.py"), "--quick"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^(\w+): ", printed, flags=re.MULTILINE)[1:]
    named = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(named) == ["jumps", "isoflop", "vanishing"]
    assert "| 5 | 80 | 0.2% | 0.0% | 100% |" in named["jumps"]
    errors = [line.split("|")[3] for line in named["isoflop"].splitlines() if line.startswith("| 2 | 0.00% |")]
    assert 0 < float(errors[0]) < 0.001


def test_every_part_of_the_coverage_is_printed():
    """Few files; of Student's intervals, which take no fit, 500: their share is near 95 %."""
    script = SCRIPT.with_name("coverage.py")
    printed = subprocess.run([sys.executable, script, "--quick"], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"^(\w+): percent of the 95 % intervals", printed, flags=re.MULTILINE)
    assert names == ["fit", "powerlaw", "few", "curve", "isoflop", "envelope", "gap", "videos", "seeds"]
    assert "| same | 240 |" in printed and "| outliers | 12 |" in printed
    command = [sys.executable, script, "seeds", "--files", "500"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    shares = [float(cell) for cell in re.findall(r"([\d.]+) ±", printed)]
    assert len(shares) == 6 and min(shares) > 90 and max(shares) < 99.5


def test_a_fit_that_is_not_the_optimum_is_noticed():
    script = runpy.run_path(str(SCRIPT))
    x, loss = script["points"](6, 4)
    fit = script["fit_power_laws"]

    def off(x, loss):
        return fit(x, loss * np.where(np.arange(len(loss)) == 3, 1.02, 1.0))

    script["measure_fit"].__globals__["fit_power_laws"] = off
    with pytest.raises(RuntimeError, match="our objective is"):
        script["measure_fit"](x, loss, script["STARTS"][37::300], 1)
