"""Points and curves of known laws, and the commands that fit them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from fvlm.__main__ import main

LAW = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}  # Hoffmann et al. 2022, eq. 10
A_OPT = LAW["beta"] / (LAW["alpha"] + LAW["beta"])


def law(n, d):
    return LAW["E"] + LAW["A"] * n ** -LAW["alpha"] + LAW["B"] * d ** -LAW["beta"]


def joint_points(sizes=8, budgets=6, noise=0.003, seed=0, low=5e7, high=1e10) -> pd.DataFrame:
    """N, D, C, L of sizes x budgets, with heavy-tailed noise."""
    rng = np.random.default_rng(seed)
    n, c = (part.ravel() for part in np.meshgrid(np.geomspace(low, high, sizes), np.geomspace(6e18, 3e21, budgets)))
    d = c / (6 * n)
    return pd.DataFrame({"N": n, "D": d, "C": c, "L": law(n, d) * np.exp(noise * rng.standard_t(4, size=len(n)))})


def training_curves(sizes=13, noise=0.0, points=60, seed=0) -> pd.DataFrame:
    """run, N, C, D, L along one run per size."""
    rng = np.random.default_rng(seed)
    parts = []
    for i, n in enumerate(np.geomspace(2e7, 2e10, sizes)):
        d = np.geomspace(1e9, 2e11, points)
        loss = law(n, d) * np.exp(noise * rng.normal(size=points))
        parts.append(pd.DataFrame({"run": f"r{i}", "N": n, "C": 6 * n * d, "D": d, "L": loss}))
    return pd.concat(parts, ignore_index=True)


def correlated(n: int, rho: float, scale: float, seed: int) -> np.ndarray:
    """AR(1) noise with standard deviation `scale`."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=n)
    for i in range(1, n):
        noise[i] = rho * noise[i - 1] + np.sqrt(1 - rho**2) * noise[i]
    return scale * noise


def run(command: str, table: pd.DataFrame | str, folder: Path, *options: str) -> dict:
    """The JSON that a command writes of a table."""
    path, out = folder / "points.csv", folder / "out.json"
    path.write_text(table) if isinstance(table, str) else table.to_csv(path, index=False)
    out.unlink(missing_ok=True)
    status = main([command, str(path), "--out", str(out), *options])
    assert status == 0
    return json.loads(out.read_text())


def refuse(command: str, table: pd.DataFrame | str, folder: Path, capsys, *options: str) -> str:
    """The one sentence with which a command refuses a table; nothing was written."""
    path, out = folder / "points.csv", folder / "out.json"
    path.write_text(table) if isinstance(table, str) else table.to_csv(path, index=False)
    before = sorted(folder.iterdir())
    assert main([command, str(path), "--out", str(out), *options]) == 2
    assert sorted(folder.iterdir()) == before
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def grid(low=2e7, high=2e10, noise=0.0, seed=0) -> pd.DataFrame:
    """Many sizes at each budget, for minima."""
    return joint_points(13, 6, noise, seed, low, high)
