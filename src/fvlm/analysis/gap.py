"""The gap between the foveated model and the 16-token baseline, raw and at equal parameters.

The baseline of a pair has more parameters. Each architecture's own curve of loss against log N, at equal
FLOPs, is read off at the other's parameter count: once where the foveated model is, once where the
baseline is.
"""

import numpy as np
import pandas as pd

from fvlm.analysis.bootstrap import interval
from fvlm.analysis.catalog import COLUMNS
from fvlm.analysis.grid import grid_points
from fvlm.analysis.study import Study, base_name


def read_off(n: np.ndarray, loss: np.ndarray, at: float) -> tuple[np.ndarray, int]:
    """Loss at `at` parameters, piecewise linear in log N; beyond the ends the nearest segment is prolonged.

    n (k,) ascending, k >= 2; loss (k,) or (k, R) -> loss () or (R,), and on which side that
    extrapolates: -1 below the smallest N, 1 above the largest, 0 not
    """
    x, here = np.log(n), np.log(at)
    right = int(np.clip(np.searchsorted(x, here), 1, len(x) - 1))
    share = (here - x[right - 1]) / (x[right] - x[right - 1])
    return loss[right - 1] + share * (loss[right] - loss[right - 1]), int(here > x[-1]) - int(here < x[0])


def percent(loss, reference):
    """How far above `reference` a loss is, in percent of it; positive: worse."""
    return 100 * (loss / reference - 1)


def corrected(
    n_foveated: np.ndarray,
    loss_foveated: np.ndarray,
    n_baseline: np.ndarray,
    loss_baseline: np.ndarray,
    pair: int,
) -> dict:
    """The gaps of one pair, in percent. Curves ascend in N; losses are (k,) or (k, R) for R replicates."""
    own, other = n_foveated[pair], n_baseline[pair]
    at_foveated, beyond_one = read_off(n_baseline, loss_baseline, own)
    at_baseline, beyond_two = read_off(n_foveated, loss_foveated, other)
    return {
        "raw": percent(loss_foveated[pair], loss_baseline[pair]),
        "at_foveated": percent(loss_foveated[pair], at_foveated),
        "at_foveated_extrapolates": beyond_one,
        "at_baseline": percent(at_baseline, loss_baseline[pair]),
        "at_baseline_extrapolates": beyond_two,
    }


def gap(runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame) -> pd.DataFrame:
    """One row per pair and measure: every size of the grid at each budget, and the ablation B1 against the
    baseline.

    measure "validation" is the final validation loss (no interval); "evaluation" the held-out loss, with a
    paired bootstrap over evaluation videos.
    """
    study = Study(runs, evaluation, bootstrap)
    rows = []
    for _, at_budget in grid_points(runs).sort_values("C", kind="stable").groupby("budget", sort=False):
        rows += _rows_at_budget(study, at_budget)
    if study.seeds("baseline") and study.seeds("B1"):
        rows += _ablation_rows(study)
    return pd.DataFrame(rows, columns=COLUMNS["gap"])


def _rows_at_budget(study: Study, points: pd.DataFrame) -> list[dict]:
    sides = [
        points[points["architecture"] == name].set_index("size").sort_values("N")
        for name in ("foveated", "multi_token")
    ]
    common = [size for size in sides[0].index if size in sides[1].index]
    if not common:
        return []
    sides = [side.loc[common] for side in sides]
    budget = points["budget"].iloc[0]
    n = [side["N"].to_numpy(float) for side in sides]
    rows = _pairs("grid", budget, common, "validation", n, [side["loss"].to_numpy(float) for side in sides], None)
    names = [
        [_grid_runs(study, side.iloc[i]["architecture"], common[i], budget) for i in range(len(common))]
        for side in sides
    ]
    losses = [np.array([np.mean([study.loss(run) for run in cell]) for cell in side]) for side in names]
    if np.isfinite(np.concatenate(losses)).all():
        rows += _pairs("grid", budget, common, "evaluation", n, losses, [_draws(study, side) for side in names])
    return rows


def _grid_runs(study: Study, architecture: str, size: str, budget: str) -> list[str]:
    grid = study.of_family("grid")
    return list(
        grid[(grid["architecture"] == architecture) & (grid["size"] == size) & (grid["budget"] == budget)]["run"]
    )


def _draws(study: Study, cells: list[list[str]]) -> np.ndarray | None:
    """Replicates (k, R), averaged over the seeds of each cell."""
    draws = [[study.draws(run) for run in cell] for cell in cells]
    if any(one is None for cell in draws for one in cell):
        return None
    return np.array([np.mean(cell, axis=0) for cell in draws])


def _pairs(
    family: str,
    budget: str,
    sizes: list[str],
    measure: str,
    n: list[np.ndarray],
    losses: list[np.ndarray],
    draws: list[np.ndarray | None] | None,
) -> list[dict]:
    rows = []
    sampled = draws is not None and all(one is not None for one in draws)
    for pair, size in enumerate(sizes):
        row = {
            "family": family,
            "budget": budget,
            "size": size,
            "measure": measure,
            "n_foveated": n[0][pair],
            "n_baseline": n[1][pair],
            "loss_foveated": losses[0][pair],
            "loss_baseline": losses[1][pair],
        }
        if len(sizes) < 2:
            row["raw_percent"] = percent(losses[0][pair], losses[1][pair])
            row["note"] = "one size: no curve to correct with"
            if sampled:
                row["raw_low"], row["raw_high"] = interval(percent(draws[0][pair], draws[1][pair]))
        else:
            row |= _corrected_row(n, losses, draws if sampled else None, pair)
        rows.append(row)
    return rows


def _corrected_row(n: list[np.ndarray], losses: list[np.ndarray], draws: list[np.ndarray] | None, pair: int) -> dict:
    gaps = corrected(n[0], losses[0], n[1], losses[1], pair)
    spread = corrected(n[0], draws[0], n[1], draws[1], pair) if draws else {}
    row: dict = {}
    for name in ("raw", "at_foveated", "at_baseline"):
        row[f"{name}_percent"] = gaps[name]
        row[f"{name}_low"], row[f"{name}_high"] = interval(spread.get(name))
    row["directions_differ"] = abs(gaps["at_foveated"] - gaps["at_baseline"])
    beyond = []
    for name, curve in (("at_foveated", "baseline's"), ("at_baseline", "foveated")):
        side = gaps[f"{name}_extrapolates"]
        row[f"{name}_extrapolates"] = bool(side)
        if side:
            beyond.append(f"the {curve} curve {'below its smallest' if side < 0 else 'above its largest'} size")
    row["note"] = f"extrapolates {' and '.join(beyond)}" if beyond else ""
    return row


def _ablation_rows(study: Study) -> list[dict]:
    """The pair of ablations, at equal samples: baseline against B1, raw."""
    cells = [
        [run for run in study.of_family("ablation")["run"] if base_name(run) == base] for base in ("baseline", "B1")
    ]
    n = [np.array([study.runs.loc[cell, "params_total"].mean()]) for cell in cells]
    final = [np.array([study.runs.loc[cell, "final.val_loss"].mean()]) for cell in cells]
    rows = _pairs("ablation", "", ["baseline, B1"], "validation", n, final, None)
    losses = [np.array([np.mean([study.loss(run) for run in cell])]) for cell in cells]
    if np.isfinite(np.concatenate(losses)).all():
        rows += _pairs(
            "ablation",
            "",
            ["baseline, B1"],
            "evaluation",
            n,
            losses,
            [_draws(study, [cell]) for cell in cells],
        )
    return rows
