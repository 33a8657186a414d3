"""The 2 x 2 of query depth and fine pass, from evaluation curves: `fvlm factorial CURVES.csv --cells ...`."""

import numpy as np
import pandas as pd

from fvlm.analysis.commands import write_result
from fvlm.analysis.commands.inputs import add_columns, assignments, plain, read_curves
from fvlm.analysis.compare.factorial import CELLS, EFFECTS, effects
from fvlm.analysis.fits.curves import ends
from fvlm.errors import UserError

ALONE = "one seed in at least one cell: no interval, so that no effect can be told from the noise between seeds"


def add_arguments(parser) -> None:
    parser.add_argument("curves", help="CSV: run_id, step, val_loss; optional seed, samples_seen")
    parser.add_argument(
        "--cells", required=True, metavar="CELL=RUN,...", help=f"which run is which of {', '.join(CELLS)}"
    )
    parser.add_argument("--out", metavar="FILE", help="the JSON to write")
    add_columns(parser, "run=name,val_loss=loss")


def main(args) -> None:
    curves = read_curves(args.curves, args.columns, args.keep, ("step",))
    cells = chosen_cells(args.cells, list(curves["run"].drop_duplicates()), args.curves)
    found = ends(curves[curves["run"].isin(cells.values())])
    members = [found[found["run"] == run].set_index("seed") for run in cells.values()]
    common = sorted(set.intersection(*(set(own.index) for own in members)))
    several = min(map(len, members)) > 1
    content = {
        "n": int(found["evaluations"].sum()),
        "method": method(len(common), several),
        "cells": {
            name: {"run": run, "seeds": len(own)} for (name, run), own in zip(cells.items(), members, strict=True)
        },
        "evaluations": {measure: _effects(members, common, several, measure) for measure in ("best", "final")},
        "warnings": [*([] if several else [ALONE]), *_unequal(found)],
    }
    if args.out:
        write_result(args.curves, args.out, plain(content))
    print("\n".join(summary(content)))


def chosen_cells(text: str, runs: list[str], path: str) -> dict[str, str]:
    """Cell -> run, in the order of CELLS."""
    given = assignments(text, "--cells")
    if set(given) != set(CELLS):
        raise UserError(
            f"--cells: found {', '.join(given) or 'nothing'}; expected a run for each of {', '.join(CELLS)}"
        )
    for cell, run in given.items():
        if run not in runs:
            raise UserError(f"--cells {cell}={run}: no such run in {path}; found {', '.join(runs[:30])}")
    if len(set(given.values())) < len(given):
        raise UserError("--cells: one run is named for two cells; expected four runs")
    return {cell: given[cell] for cell in CELLS}


def method(common: int, several: bool) -> str:
    level = "main effects are differences of means over the other factor, the interaction is the difference of the "
    level += "two depth effects; negative: the first level has the lower loss"
    if common > 1:
        return f"{level}; Student's t interval at 95 % over the {common} seeds common to the cells"
    return f"{level}; {'Welch interval at 95 % over the seeds of each cell' if several else 'no interval'}"


def _effects(members: list[pd.DataFrame], common: list[float], several: bool, measure: str) -> dict:
    if common and (len(common) > 1 or not several):
        cells = np.array([own.loc[common, measure].to_numpy(float) for own in members])
    else:
        cells = [own[measure].to_numpy(float) for own in members]
    found = effects(cells)
    return {
        "cells": dict(zip(CELLS, (float(np.mean(own)) for own in cells), strict=True)),
        "effects": [
            {
                "effect": name,
                "estimate": found[name].value,
                "low": found[name].low,
                "high": found[name].high,
                "interval": found[name].interval,
                "n_seeds": found[name].n_seeds,
            }
            for name in EFFECTS
        ],
    }


def _unequal(found: pd.DataFrame) -> list[str]:
    """What makes the cells hard to compare."""
    said = []
    for name, words in (("final_step", "last steps"), ("samples", "samples seen at the end")):
        low, high = found[name].min(), found[name].max()
        if high > 1.01 * low:
            said.append(f"the cells' {words} differ: {low:.10g} to {high:.10g}")
    early = found[found["best_is_early"]]
    for row in early.to_dict("records"):
        said.append(f"the best loss of {row['run']} is that of evaluation {row['best_evaluation']}; look at the final")
    return said


def summary(content: dict) -> list[str]:
    lines = []
    for measure, part in content["evaluations"].items():
        lines.append(f"{measure}: " + ", ".join(f"{name} {loss:.4f}" for name, loss in part["cells"].items()))
        for row in part["effects"]:
            known = row["low"] is not None and np.isfinite(row["low"])
            sure = f" ({row['low']:+.4f} to {row['high']:+.4f}, {row['n_seeds']} seeds)" if known else ""
            lines.append(f"  {row['effect']}: {row['estimate']:+.4f}{sure}")
    return lines + [f"warning: {text}" for text in content["warnings"]]
