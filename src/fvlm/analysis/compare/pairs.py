"""Two architectures in a user's own points, as `fvlm gap` compares them: their curves, their pairs, their samples."""

import argparse

import numpy as np
import pandas as pd

from fvlm.analysis.compare.bootstrap import resampled_sums
from fvlm.analysis.inputs import read
from fvlm.errors import UserError

TOLERANCE = 1e-3  # by which a loss of the samples may differ from L without a warning; relative
Pair = tuple[str, tuple[int, int]]  # name, place of its runs in the curves of both architectures


def architectures(path: str, points: pd.DataFrame, foveated: str | None, baseline: str | None) -> tuple[str, str]:
    """Return the two names; guessed if the file has just two and one begins with fov."""
    known = list(points["architecture"].drop_duplicates())
    for option, name in (("--foveated", foveated), ("--baseline", baseline)):
        if name and name not in known:
            raise UserError(f"{option} {name}: no such architecture in {path}; found {', '.join(known)}")
    guesses = [name for name in known if name.lower().startswith("fov")]
    foveated = foveated or (guesses[0] if len(guesses) == 1 and guesses[0] != baseline else None)
    others = [name for name in known if name not in (foveated, baseline)]
    if baseline and not foveated and len(others) == 1:
        foveated = others[0]
    if foveated and not baseline and len(others) == 1:
        baseline = others[0]
    if not foveated or not baseline or foveated == baseline:
        raise UserError(
            f"{path}: found the architectures {', '.join(known)}; say which two are compared: "
            "--foveated NAME --baseline NAME"
        )
    return foveated, baseline


class Group:
    """The runs that are compared with each other: two curves, and which of their points are pairs.

    n       of both curves, ascending
    losses  (runs, seeds), the foveated runs first
    """

    def __init__(self, path: str, name: str, points: pd.DataFrame, names: tuple[str, str]):
        self.where, self.name = f"{path}{f', group {name}' * bool(name)}", name
        by = "pair" if "pair" in points else "N"
        points = points.assign(pair=points[by].astype(str), seed=points.get("seed", 0.0), run=points.get("run", ""))
        self._check(points, names, by)
        runs = points.groupby(["architecture", "pair"], as_index=False).agg({"N": "mean", "run": "first"})
        runs = runs.assign(side=runs["architecture"].map(names.index)).sort_values(["side", "N"], ignore_index=True)
        if runs.duplicated(["side", "N"]).any():
            twice = runs.loc[runs.duplicated(["side", "N"]), "architecture"].iloc[0]
            raise UserError(f"{self.where}: two sizes of {twice} have the same N; a curve needs one loss at each N")
        losses = points.pivot(index=["architecture", "pair"], columns="seed", values="L")
        losses = losses.loc[pd.MultiIndex.from_frame(runs[["architecture", "pair"]])]
        common = losses.dropna(axis="columns")
        if common.empty:
            raise UserError(f"{self.where}: no seed is common to all runs; expected the same seeds, or no column seed")
        self.runs, self.losses = runs, common.to_numpy(float)
        self.sides = [runs[runs["side"] == side] for side in (0, 1)]
        self.n = [side["N"].to_numpy(float) for side in self.sides]
        self.pairs = self._pairs(paired=by == "pair")
        left_out = ", ".join(f"{seed:g}" for seed in losses.columns.difference(common.columns))
        self.warnings = [f"{self.where}: seeds {left_out} are left out, since not every run has them"] * bool(left_out)

    def _check(self, points: pd.DataFrame, names: tuple[str, str], by: str) -> None:
        for name in names:
            if name not in set(points["architecture"]):
                raise UserError(f"{self.where}: no run of architecture {name}; expected runs of both")
        for (name, pair, _), own in points.groupby(["architecture", "pair", "seed"]):
            if len(own) > 1:
                raise UserError(
                    f"{self.where}: {len(own)} runs of {name} have {by} {pair}; expected one for each seed: give the "
                    "columns seed, pair or group, or choose rows with --keep"
                )

    def _pairs(self, paired: bool) -> list[Pair]:
        left, right = (list(side["pair"]) for side in self.sides)
        if paired:
            common = [name for name in left if name in right]
            if common:
                return [(name, (left.index(name), right.index(name))) for name in common]
            raise UserError(f"{self.where}: no pair has runs of both architectures; found {', '.join(left + right)}")
        if len(left) != len(right):
            counts = " and ".join(f"{len(side)} runs of {side['architecture'].iloc[0]}" for side in self.sides)
            raise UserError(f"{self.where}: {counts}; say in a column pair which belong together")
        return [(f"{place + 1}", (place, place)) for place in range(len(left))]

    def resample(self, path: str, samples: pd.DataFrame, draws: int, seed: int) -> tuple[np.ndarray, list[str]]:
        """Return bootstrap replicates (runs, draws) of the losses, drawn alike for all runs, and warnings.

        The losses become those of the samples, so that an interval belongs to its value.
        """
        if self.losses.shape[1] > 1:
            raise UserError(f"{self.where}: with several seeds the interval is over seeds; leave --samples out")
        runs = self.runs.to_dict("records")
        tables = [self._samples_of(path, samples, run) for run in runs]
        keys = tables[0].index
        for table, run in zip(tables, runs, strict=True):
            other = keys.symmetric_difference(table.index)
            if len(other):
                raise UserError(
                    f"{path}: sample {other[0]} is not there for every run ({run['architecture']} has other samples); "
                    "expected the same samples for all runs, since the bootstrap is paired"
                )
        videos, place = np.unique(np.asarray(tables[0].get("video", keys), str), return_inverse=True)
        if len(videos) < 2:
            raise UserError(f"{path}: one sample or video alone has no spread; expected two or more")
        sums = (
            np.array([np.bincount(place, table.loc[keys, name].to_numpy(float)) for table in tables])
            for name in ("loss_sum", "tokens")
        )
        loss, tokens = resampled_sums(*sums, draws, seed)
        means = loss[:, 0] / tokens[:, 0]
        if not means.all():
            empty = runs[int(np.argmin(means))]["architecture"]
            raise UserError(f"{path}: the losses of {empty} add up to zero; expected a positive sum: check loss_sum")
        warnings = [
            f"{self.where}: L of {run['architecture']} at N {run['N']:.10g} is {old:.5g}, its samples give {new:.5g}; "
            "the gaps are those of the samples"
            for run, old, new in zip(runs, self.losses[:, 0], means, strict=True)
            if abs(new / old - 1) > TOLERANCE
        ]
        self.losses = means[:, None]
        return loss[:, 1:] / tokens[:, 1:], warnings

    def _samples_of(self, path: str, samples: pd.DataFrame, run: dict) -> pd.DataFrame:
        """The samples of one run, by key."""
        if "run" in samples:
            own, what = samples[samples["run"] == run["run"]], f"run {run['run']}"
        else:
            what = f"{run['architecture']} with N {run['N']:.10g}"
            same = (samples["architecture"] == run["architecture"]) & np.isclose(samples["N"], run["N"], rtol=1e-9)
            own = samples[same & (samples["group"] == self.name)] if "group" in samples else samples[same]
        if own.empty:
            raise UserError(f"{path}: no samples of {what}; expected those of every run of {self.where}")
        if own["key"].duplicated().any():
            key = own.loc[own["key"].duplicated(), "key"].iloc[0]
            raise UserError(f"{path}: {what} has sample {key} twice; keep one evaluation mode (and group) per run")
        return own.set_index("key")


def read_samples(path: str, points: pd.DataFrame) -> pd.DataFrame:
    """Return losses by sample, which name their run, or its architecture and N (and group)."""
    by_run = "run" in points
    needed = ("run",) if by_run else ("architecture", "N")
    optional = ("source", "video") if by_run else ("group", "source", "video")
    as_named = argparse.Namespace(columns="", keep=[])
    samples = read(path, as_named, (*needed, "key", "loss_sum", "tokens"), optional)
    if "source" in samples:
        samples["key"] = samples["source"] + "/" + samples["key"]
    return samples
