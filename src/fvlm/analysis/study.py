"""What a run is when it is compared: its name without the seed, its mode, its evaluation, the data it saw."""

import re

import numpy as np
import pandas as pd

from fvlm.analysis.bootstrap import Replicates

SEED_SUFFIX = re.compile(r"-s\d+$")
DATA_FIELDS = {  # a difference in one of these means that two runs saw different data
    "config.data.sources": "sources",
    "config.data.share": "mixture",
    "config.data.static_frames": "static frames",
    "config.data.loss": "scored tokens",
}


def base_name(run: str) -> str:
    """`A6-s43` -> `A6`: runs with one base name differ in the seed alone."""
    return SEED_SUFFIX.sub("", run)


def trained_mode(run: pd.Series) -> str:
    """The evaluation mode that a run was trained in."""
    if run["architecture"] != "foveated":
        return "direct"
    return "coarse_fine" if run["fine_pass"] else "coarse_only"


class Study:
    """The runs by base name, with their evaluation."""

    def __init__(self, runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame):
        self.runs = runs.assign(base=runs["run"].map(base_name)).set_index("run", drop=False)
        self.replicates = Replicates(bootstrap)
        whole = evaluation[evaluation["source"] == "all"]
        keys = whole[["run", "mode", "frames", "kind"]].itertuples(index=False, name=None)
        self._losses = dict(zip(keys, whole["loss"].astype(float), strict=True))

    def of_family(self, family: str) -> pd.DataFrame:
        return self.runs[self.runs["family"] == family]

    def seeds(self, base: str) -> dict[int, str]:
        """Seed -> run, for all runs with this base name."""
        chosen = self.runs[self.runs["base"] == base]
        return {
            int(seed) if pd.notna(seed) else 0: run for run, seed in zip(chosen["run"], chosen["seed"], strict=True)
        }

    def loss(self, run: str, kind: str = "all") -> float:
        """Evaluation loss in the mode the run was trained in; NaN if it was not evaluated."""
        return self.loss_of(run, trained_mode(self.runs.loc[run]), "own", kind)

    def loss_of(self, run: str, mode: str, frames: str, kind: str = "all") -> float:
        return self._losses.get((run, mode, frames, kind), np.nan)

    def draws(self, run: str, kind: str = "all") -> np.ndarray | None:
        return self.replicates.loss(run, trained_mode(self.runs.loc[run]), "own", kind)

    def data_differs(self, run: str, other: str) -> str:
        """What differs in the data that two runs saw, in words; empty if nothing does."""
        one, two = self.runs.loc[run], self.runs.loc[other]
        differs = [
            word
            for word, names in self._data_fields().items()
            if any(not _same(one.get(name), two.get(name)) for name in names)
        ]
        if pd.notna(one["samples"]) and pd.notna(two["samples"]) and one["samples"] != two["samples"]:
            differs.append("number of samples")
        return ", ".join(differs)

    def _data_fields(self) -> dict[str, list[str]]:
        """Word -> columns of the runs table (a mapping such as the mixture is several columns)."""
        return {
            word: [name for name in self.runs.columns if name == field or name.startswith(f"{field}.")]
            for field, word in DATA_FIELDS.items()
        }


def _same(one, two) -> bool:
    return (pd.isna(one) and pd.isna(two)) or one == two
