"""What the figures of scaling need of imported runs: a group, parameters N, training FLOPs C, and tokens.

FLOPs of a file are converted to two per multiply-add. If it has none, they are counted as `fvlm plan` counts them, for
the samples of the full-size study (config/paper.yaml), whose mean lengths config/sources.yaml states. Each run keeps in
words where its FLOPs come from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COUNTED, GROUP
from fvlm.config.resolve import study_from_files
from fvlm.config.schema import Study
from fvlm.config.study_file import OWN
from fvlm.costs.amounts import flops_per_sample, mean_lengths, streams
from fvlm.costs.flops import parameters

SIZED = ("grid", "scaling", "pairs")  # families of imported runs with a size
PLACE = ["size", "architecture"]
OF_STUDY = "pflops of multiply-adds"  # what the column `pflops` of the published study's points is called here
AS_GIVEN = "those of the file, taken as two per multiply-add"
FLOPS = {  # column -> FLOPs (two per multiply-add) of one of its units, and the conversion in words
    "flops": (1.0, AS_GIVEN),
    "total_flops": (1.0, AS_GIVEN),
    "total_flops_reported": (2 / 3, "total_flops_reported x 2/3 (there one per multiply-add, and 3 times too many)"),
    "pflops": (1e15, AS_GIVEN),
    OF_STUDY: (2e15, "pflops x 2 (there one per multiply-add)"),
}
DECAYED = 0.5  # a decaying rate that ends above this part of its highest has not come to its end


def flops_in(columns: Mapping) -> tuple[float | pd.Series, str]:
    """Return the training FLOPs of a row or a table, and where they come from; NaN and an empty word without any."""
    found = ((columns[name] * unit, words) for name, (unit, words) in FLOPS.items() if name in columns)
    return next(found, (np.nan, ""))


def still_high(points: pd.DataFrame) -> bool:
    """Return whether a decaying learning rate had not come down at the last evaluation: the run was not finished."""
    return "lr" in points and points["lr"].iloc[-1] > DECAYED * points["lr"].max()


def name_groups(runs: pd.DataFrame, results: str) -> None:
    """Name the runs that were scored on the same samples: those of one file and number of frames. The budget of pairs
    gets the group's name, since pairs of other results may have the same number of frames.

    results   name of the file or folder; empty if there is only one, whose runs of this project need no group
    """
    if not results and any(name.startswith("config.model.") for name in runs):
        return
    frames = runs["budget"].where(runs["family"] == "pairs", "")
    runs[GROUP] = [", ".join(filter(None, (results, one))) for one in frames]
    runs.loc[runs["family"] == "pairs", "budget"] = runs[GROUP]


@dataclass(frozen=True)
class Sample:
    """The mean sample of the full-size study: visual positions and tokens of each, text tokens, training FLOPs (two per
    multiply-add); and the parameters of the model."""

    parameters: int
    frames: float
    visual_tokens: int
    text_tokens: float
    flops: float


@cache
def _full_size() -> Study:
    return study_from_files([str(OWN / "paper.yaml")])


def text_of_a_sample() -> float:
    """The text tokens of the mean sample, which do not depend on the model."""
    return next(filter(None, (sample_of(size, "foveated") for size in ("135M", "360M")))).text_tokens


@cache
def sample_of(size: str, architecture: str) -> Sample | None:
    """Return the mean sample of a model size and architecture of the scaling grid; None if it has no such size."""
    study = _full_size()
    for run in study.runs.values():
        if run.family == "grid" and (run.labels["size"], run.model.architecture) == (size, architecture):
            parts = [(stream.share, *mean_lengths(stream, run, study)) for stream in streams(run, study)]
            frames, text = (sum(part[0] * part[place] for part in parts) for place in (1, 3))
            return Sample(
                parameters(run.model)["total"], frames, run.model.visual_tokens, text, flops_per_sample(run, study)
            )
    return None


def complete(tables: dict[str, pd.DataFrame]) -> None:
    """Fill in what imported runs with a size lack, and decide which of them belong to the scaling grid.

    N        of another run of the same size and architecture, or counted
    tokens   samples times the frames and text tokens of the mean sample
    C        samples times the FLOPs of the mean sample, also along the curves
    """
    runs = tables["runs"]
    own = runs["family"].isin(SIZED) & (runs["size"] != "")
    if not own.any():
        return
    known = runs[own & runs["params_total"].notna()].drop_duplicates(PLACE).set_index(PLACE)["params_total"]
    pairs = zip(runs.to_dict("records"), own, strict=True)
    filled = pd.DataFrame([_completed(row, known) if sized else row for row, sized in pairs])
    each = (filled["flops"].astype(float) / filled["samples"].astype(float)).set_axis(filled["run"])[own.to_numpy()]
    for name in ("validation_curves", "training_curves"):
        curve = tables[name]
        counted = curve["samples"].astype(float) * curve["run"].map(each).astype(float)
        tables[name] = curve.assign(flops=curve["flops"].astype(float).fillna(counted))
    grid = filled["family"] == "grid"
    point = filled[["params_total", "samples", "flops"]].astype(float)
    filled.loc[grid & ~np.isfinite(point).all(axis=1), "family"] = "stage"  # a point of the grid is N, D, C and loss
    grid &= filled["family"] == "grid"
    nominal = filled["budget"].where(grid & filled["flops_budget"].isna())
    spent = filled[grid].groupby("budget")["flops"].median()
    filled["flops_budget"] = filled["flops_budget"].astype(float).fillna(nominal.map(spent).astype(float))
    tables["runs"] = filled


def _completed(row: dict, known: pd.Series) -> dict:
    size, architecture = row["size"], row["architecture"]
    sample, samples = sample_of(size, architecture), row["samples"]
    if pd.isna(row["params_total"]):
        row["params_total"] = known.get((size, architecture), sample.parameters if sample else np.nan)
    if pd.isna(row["text_tokens"]):
        row["text_tokens"] = samples * text_of_a_sample()
    if sample is None:
        return row
    if pd.isna(row["frames"]):
        row["frames"] = samples * sample.frames
    if pd.isna(row["visual_tokens"]):
        row["visual_tokens"] = sample.visual_tokens
    if pd.isna(row["flops"]) and samples > 0:
        words = (
            f"{sample.flops:.3g} a sample of {size}, counted for {sample.frames:.1f} frames and "
            f"{sample.text_tokens:.0f} text tokens, the means of the full-size study's sources"
        )
        row |= {"flops": samples * sample.flops, COUNTED: words}
    return row
