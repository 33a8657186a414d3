"""Tables of a scaling grid for the figures of fits: curves that follow L(N, D) all along, over many sizes."""

from pathlib import Path

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.compare.gap import gap
from fvlm.analysis.files import write_table
from fvlm.analysis.fits.isoflop import isoflop
from fvlm.analysis.fits.scaling import scaling_fits
from tests.analysis_cases import COMPARISONS, grid_summary, law

SIZES = {"20M": 2e7, "50M": 5e7, "135M": 1.4e8, "360M": 3.8e8, "1B": 1e9, "1.7B": 1.8e9, "7B": 7e9}
BUDGETS = {"C1": 1e17, "C2": 3e17, "C3": 1e18, "C4": 3e18, "C5": 1e19}  # the largest size is the best at the last
FLOPS = {"F": 1500.0, "B": 2200.0}  # per parameter and sample
LARGER = {"F": 1.0, "B": 1.08}


def grid_tables(sizes=SIZES, budgets=BUDGETS, noise=0.001, letters="FB", seed=0) -> dict[str, pd.DataFrame]:
    """The tables that the figures of the grid need, by name."""
    rng = np.random.default_rng(seed)
    rows, curves = [], []
    for size, n in sizes.items():
        for budget, flops in budgets.items():
            for letter in letters:
                own = n * LARGER[letter]
                samples = flops / (own * FLOPS[letter])
                share = np.geomspace(0.02, 1, 25)
                loss = law(own, share * samples, letter) * np.exp(noise * rng.normal(size=25))
                place = {"samples": samples, "flops": flops, "n": own}
                row = grid_summary(size, budget, letter, float(loss.min()), **place)
                row["final"]["val_loss"], row["flops_budget"] = float(loss[-1]), flops
                rows.append(row)
                curve = {"samples": share * samples, "flops": share * flops, "val_loss": loss, "run": row["run"]}
                curves.append(pd.DataFrame(curve).assign(step=1 + np.arange(25)))
    runs = pd.json_normalize(rows).reindex(columns=list(COLUMNS["runs"]))
    evaluation, bootstrap = (pd.DataFrame(columns=list(COLUMNS[name])) for name in ("evaluation", "bootstrap"))
    found = {"runs": runs, "validation_curves": pd.concat(curves).reindex(columns=list(COLUMNS["validation_curves"]))}
    return found | {
        "isoflop": isoflop(runs),
        "scaling_fits": scaling_fits(runs),
        "gap": gap(runs, evaluation, bootstrap, COMPARISONS),
    }


def write_tables(folder: Path, tables: dict[str, pd.DataFrame]) -> None:
    for name, table in tables.items():
        write_table(table, folder / f"{name}.csv")
