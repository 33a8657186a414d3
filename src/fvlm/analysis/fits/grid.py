"""The scaling grid as points."""

from pathlib import Path

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS, SCHEDULE
from fvlm.analysis.compare.runs import is_adopted, scores_tokens
from fvlm.config.architectures import ARCHITECTURES
from fvlm.errors import UserError

PAIRED = ("grid", "pairs")  # families with both architectures: at equal FLOPs, and otherwise (imported ones)
APART = 0.05  # gap between budgets
WIDEST_BUDGET = 1.3  # largest C / smallest C


def grid_points(runs: pd.DataFrame, family: str = "grid") -> pd.DataFrame:
    """The grid's runs (or those of another family with sizes and budgets), seeds averaged: architecture, size,
    budget, N (parameters), D (samples seen), C (training FLOPs spent, two per multiply-add), loss (final validation,
    nats per token), tokens (text and visual tokens seen), runs, adopted (how many of them another program trained)."""
    grid = runs[(runs["family"] == family) & runs["final.val_loss"].notna()]
    tokens = grid["text_tokens"].astype(float) + grid["frames"].astype(float) * grid["visual_tokens"].astype(float)
    columns = {
        "N": "params_total",
        "D": "samples",
        "C": "flops",
        "loss": "final.val_loss",
        "nominal": "flops_budget",
    }
    points = grid[["architecture", "size", "budget"]].assign(
        **{name: grid[column].astype(float) for name, column in columns.items()},
        tokens=tokens,
        runs=1,
        adopted=is_adopted(grid).astype(int),
    )
    how = dict.fromkeys(("N", "D", "C", "loss", "nominal", "tokens"), "mean") | dict.fromkeys(
        ("runs", "adopted"), "sum"
    )
    points = points.groupby(["architecture", "size", "budget"], as_index=False, sort=False).agg(how)
    order = {name: position for position, name in enumerate(ARCHITECTURES)}
    return (
        points.assign(order=points["architecture"].map(order))
        .sort_values(["order", "N", "C"], ignore_index=True)
        .drop(columns="order")
    )


def points(runs: pd.DataFrame) -> pd.DataFrame:
    """The table `points`: `grid_points` as `fvlm fit`, `powerlaw` and `isoflop` read them."""
    return grid_points(runs).rename(columns={"loss": "L"})[list(COLUMNS["points"])]


def points_by_run(runs: pd.DataFrame) -> pd.DataFrame:
    """The table `points_by_run`, for `fvlm gap`: one row per run of the grid or of pairs, with its seed."""
    grid = runs[runs["family"].isin(PAIRED) & runs["final.val_loss"].notna()]
    names = {"params_total": "N", "samples": "D", "flops": "C", "final.val_loss": "L"}
    # results from elsewhere may have no seed
    grid = grid.assign(seed=grid["seed"].fillna(0), adopted=is_adopted(grid).astype(int))
    return grid.rename(columns=names)[list(COLUMNS["points_by_run"])]


def curves(runs: pd.DataFrame, validation_curves: pd.DataFrame) -> pd.DataFrame:
    """The table `curves`: all validations after the first step, as `fvlm envelope`, `factorial`, `rank`,
    `check-curves` and `powerlaw` read them."""
    about = runs[scores_tokens(runs)].set_index("run")
    about = about.reindex(columns=["family", "architecture", "size", SCHEDULE, "params_total"])
    names = {"params_total": "N", "samples": "D", "flops": "C", "val_loss": "L", SCHEDULE: "lr_schedule"}
    learnt = validation_curves["val_loss"].notna() & (validation_curves["step"] > 0)
    table = validation_curves[learnt].join(about, on="run", how="inner")
    return table.rename(columns=names)[list(COLUMNS["curves"])].reset_index(drop=True)  # of no rows, the index is `run`


def about_adopted(points: pd.DataFrame) -> str:
    """Return a note if points of `grid_points` mix adopted runs and runs trained here; empty if they do not."""
    adopted, runs = int(points["adopted"].sum()), int(points["runs"].sum())
    if adopted in (0, runs):
        return ""
    return f"{adopted} of {runs} runs are adopted: their losses may be of other samples and scored tokens"


def lowest_by_budget(points: pd.DataFrame) -> pd.DataFrame:
    """Of one architecture's points: the lowest loss at each budget."""
    return points.loc[points.groupby("budget")["loss"].idxmin()].sort_values("C")


def separate_budgets(path: Path | str, flops: np.ndarray) -> np.ndarray:
    """Return the budget (n,), counted from the smallest, of each C (n,). A run spends a little more or less than its
    budget; a gap of 5 % begins the next one.

    raises  UserError where no gaps separate the budgets
    """
    order = np.argsort(flops)
    steps = np.diff(np.log(flops[order]), prepend=np.log(flops[order[0]])) > np.log1p(APART)
    labels = np.empty(len(flops), int)
    labels[order] = np.cumsum(steps)
    for budget in np.unique(labels):
        own = flops[labels == budget]
        if own.max() > WIDEST_BUDGET * own.min():
            raise UserError(
                f"{path}: no gap of 5 % between the budgets from {own.min():.3g} to {own.max():.3g}; "
                "expected runs at a few budgets: write each run's budget into its column"
            )
    return labels
