"""The 2 x 2 of query depth and fine pass: main effects and interaction. The table `factorial` of a study, and
`fvlm factorial CURVES.csv --cells ...`."""

import argparse
from functools import partial

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.compare.bootstrap import LEVEL, OVER_SEEDS, OVERALL, Estimate, pooled
from fvlm.analysis.compare.noise import Noise, SeedsOfCurves, rounded
from fvlm.analysis.compare.runs import EVALUATION, VALIDATION, ComparedRuns
from fvlm.analysis.fits.curves import ends
from fvlm.analysis.inputs import add_files, assignments, finish, read_curves
from fvlm.config.comparisons import Cells, Comparisons
from fvlm.errors import UserError

CELLS = tuple(Cells.model_fields)
EFFECTS = {  # weights of the cells, in their order; negative: the first level is better
    "query depth (deep - shallow)": (0.5, -0.5, 0.5, -0.5),
    "fine pass (with - without)": (0.5, 0.5, -0.5, -0.5),
    "interaction (depth effect with - without fine pass)": (1.0, -1.0, -1.0, 1.0),
}
METHOD = (
    "main effects are differences of means over the other factor, the interaction is the difference of the two depth "
    "effects; negative: the first level has the lower loss; "
)
ALONE = "one seed in at least one cell: no interval over seeds, so an effect is likely at most"


def contrast(cells: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
    """cells (4, ...) in the order of CELLS -> the effect (...)."""
    return np.tensordot(np.asarray(weights), cells, axes=1)


def effects(cells: np.ndarray | list[np.ndarray]) -> dict[str, Estimate]:
    """Return each effect over seeds; cells (4,) of losses (seeds,), in the order of CELLS.

    An array (4, seeds) of cells with the same seeds: the effect is taken within each seed, with Student's interval over
    seeds. A list of cells with other seeds each: Welch's interval (Welch 1947), where variances add, with
    Satterthwaite's degrees of freedom. One seed in a cell: no interval.
    """
    if isinstance(cells, np.ndarray):
        return {name: pooled(contrast(cells, weights)) for name, weights in EFFECTS.items()}
    return {name: welch(cells, weights) for name, weights in EFFECTS.items()}


def welch(cells: list[np.ndarray], weights: tuple[float, ...]) -> Estimate:
    """Return the weighted sum of the means of independent samples, with Welch's interval at 95 %."""
    value = float(np.dot(weights, [np.mean(own) for own in cells]))
    fewest = min(map(len, cells))
    if fewest < 2:
        return Estimate(value, n_seeds=fewest)
    parts = np.square(weights) * [np.var(own, ddof=1) / len(own) for own in cells]
    if not parts.any():
        return Estimate(value, value, value, OVER_SEEDS, fewest)
    degrees = parts.sum() ** 2 / sum(part**2 / (len(own) - 1) for part, own in zip(parts, cells, strict=True))
    half = float(stdtrit(degrees, (1 + LEVEL) / 2) * np.sqrt(parts.sum()))
    return Estimate(value, value - half, value + half, OVER_SEEDS, fewest)


def factorial(
    runs: pd.DataFrame,
    evaluation: pd.DataFrame,
    bootstrap: pd.DataFrame,
    comparisons: Comparisons,
    validation_curves: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return three effects at the best and the final validation and in the evaluation; no row if a cell has no run.

    With two or more seeds common to the cells the interval is a t interval over seeds. With one, only the
    evaluation has an interval, and it covers the noise of the evaluation videos, not that of the seed; the columns of
    the noise give the latter as other runs or the curves show it.
    """
    study = ComparedRuns(runs, evaluation, bootstrap, validation_curves)
    named = comparisons.factorial.runs if comparisons.factorial else {}
    matched = study.matched(list(named.values())) if named else []
    if not matched:
        return pd.DataFrame(columns=COLUMNS["factorial"])
    rows, bases = [], list(named.values())
    for measure in ("best", "final") if study.all_same_validation(matched[0]) else ():
        cells = np.array([study.runs.loc[names, f"{measure}.val_loss"] for names in matched], float).T  # (4, seeds)
        for name, effect in effects(cells).items():
            noise = study.noise(bases, partial(contrast, weights=EFFECTS[name]), f"{measure} {VALIDATION}")
            rows.append(_row(measure, name, effect, noise, cells))
    cells = np.array([[study.loss(run) for run in names] for names in matched]).T
    for name, weights in EFFECTS.items():
        combine = partial(contrast, weights=weights)
        effect = study.estimate([(base, OVERALL) for base in bases], combine)
        rows.append(_row("evaluation", name, effect, study.noise(bases, combine, EVALUATION), cells))
    return pd.DataFrame(rows, columns=COLUMNS["factorial"]).dropna(subset="estimate").reset_index(drop=True)


def _row(measure: str, name: str, effect: Estimate, noise: Noise, cells: np.ndarray) -> dict:
    place = {"measure": measure, "effect": name, **dict(zip(CELLS, cells.mean(axis=1), strict=True))}
    return place | effect.columns("estimate") | noise.columns(LEVEL)


def of_curves(curves: pd.DataFrame, named: dict[str, str]) -> dict:
    """Return the effects at the best and the final evaluation of curves, as the command writes them.

    curves  as `read_curves` gives them; named: cell -> run, in the order of CELLS
    """
    last = ends(curves)
    seeds = SeedsOfCurves(last, curves)
    last = last[last["run"].isin(named.values())]
    members = [last[last["run"] == run].set_index("seed") for run in named.values()]
    common = sorted(set.intersection(*(set(own.index) for own in members)))
    several = min(map(len, members)) > 1
    paired = bool(common) and (len(common) > 1 or not several)
    evaluations = {}
    for measure in ("best", "final"):
        cells = [own[measure].to_numpy(float) for own in members]
        if paired:
            cells = np.array([own.loc[common, measure].to_numpy(float) for own in members])
        rows = []
        for name, effect in effects(cells).items():
            alone = effect.interval != OVER_SEEDS
            noise = seeds.noise(list(named.values()), EFFECTS[name], measure) if alone else Noise()
            about = _about(effect, noise) if alone else ""
            rows.append({"effect": name} | effect.columns("estimate") | noise.columns(LEVEL) | {"about": about})
        evaluations[measure] = {"cells": dict(zip(CELLS, map(np.mean, cells), strict=True)), "effects": rows}
    interval = "Welch interval at 95 % over the seeds of each cell" if several else "no interval"
    if len(common) > 1:
        interval = f"Student's t interval at 95 % over the {len(common)} seeds common to the cells"
    return {
        "n": last["evaluations"].sum(),
        "method": METHOD + interval,
        "cells": {
            name: {"run": run, "seeds": len(own)} for (name, run), own in zip(named.items(), members, strict=True)
        },
        "evaluations": evaluations,
        "warnings": [*([] if several else [ALONE]), *_unequal(last)],
    }


def _about(effect: Estimate, noise: Noise) -> str:
    """An effect without interval beside the noise between seeds, in words."""
    words = noise.words(effect.value)
    return f"{words}; likely from {rounded(noise.times(LEVEL))} times" if noise.known else words


def _unequal(last: pd.DataFrame) -> list[str]:
    """Return warnings about cells that are hard to compare."""
    warnings = []
    for name, words in (("final_step", "last steps"), ("samples", "samples seen at the end")):
        low, high = last[name].min(), last[name].max()
        if high > 1.01 * low:
            warnings.append(f"the cells' {words} differ: {low:.10g} to {high:.10g}")
    for row in last[last["best_is_early"]].to_dict("records"):
        warnings.append(f"the best loss of {row['run']} is at evaluation {row['best_evaluation']}; look at the final")
    return warnings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_files(parser, "curves", "run, step, val_loss; optional seed, samples", "run=name,val_loss=loss")
    parser.add_argument("--cells", required=True, metavar="CELL=RUN,...", help=f"the run of each of {', '.join(CELLS)}")


def main(args: argparse.Namespace) -> None:
    curves = read_curves(args.curves, args, "step")
    content = of_curves(curves, chosen_cells(args.cells, list(curves["run"].drop_duplicates()), args.curves))
    finish(args.curves, args.out, content, summary)


def chosen_cells(text: str, runs: list[str], path: str) -> dict[str, str]:
    """Return cell -> run, in the order of CELLS."""
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


def summary(content: dict) -> list[str]:
    lines = []
    for measure, part in content["evaluations"].items():
        lines.append(f"{measure}: " + ", ".join(f"{name} {loss:.4f}" for name, loss in part["cells"].items()))
        for row in part["effects"]:
            ci = f" ({row['about']})"
            if row["low"] is not None:
                ci = f" ({row['low']:+.4f} to {row['high']:+.4f}, {row['n_seeds']} seeds)"
            lines.append(f"  {row['effect']}: {row['estimate']:+.4f}{ci}")
    return lines + [f"warning: {text}" for text in content["warnings"]]
