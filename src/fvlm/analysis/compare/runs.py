"""What a run is when it is compared: its name without the seed, its mode, its evaluation, the data it saw."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from fvlm.analysis.compare.bootstrap import LEVEL, OVERALL, Cell, Estimate, pooled
from fvlm.analysis.compare.noise import Noise, noise_of, slopes
from fvlm.analysis.finished import base_name
from fvlm.config.architectures import ARCHITECTURES
from fvlm.config.comparisons import Comparisons
from fvlm.config.trained import ADOPTED

WITH_QUERIES = [name for name, architecture in ARCHITECTURES.items() if architecture.queries]
EVALUATION, VALIDATION = "evaluation loss", "validation loss"
DATA_FIELDS = {  # a difference in one of these means that two runs saw different data
    "config.data.sources": "sources",
    "config.data.share": "mixture",
    "config.data.weights": "weights of sources",
    "config.data.static_frames": "static frames",
    "config.data.loss": "scored tokens",
    "origin": "origin",  # an adopted run has a configuration of this study, and data of its own
}


def trained_mode(run: pd.Series) -> str:
    """The evaluation mode that a run was trained in."""
    if run["architecture"] not in WITH_QUERIES:
        return "direct"
    return "coarse_fine" if run["fine_pass"] else "coarse_only"


def scores_tokens(runs: pd.DataFrame) -> pd.Series:
    """True for runs whose loss is in nats per token; that of a run on preferences is per pair of answers."""
    return runs.get("config.data.loss", pd.Series("", index=runs.index)) != "preference"


def is_adopted(runs: pd.DataFrame) -> pd.Series:
    """True for runs that another program has trained, in a study that trains others."""
    return runs.get("origin", pd.Series("", index=runs.index)) == ADOPTED


def difference(losses: np.ndarray) -> np.ndarray:
    """(2, ...) -> the first minus the second; negative: the first is better."""
    return losses[0] - losses[1]


def question_of(run: pd.Series, comparisons: Comparisons) -> str:
    """The question of an ablation in the configuration, or in the run's summary if the configuration has none."""
    question = comparisons.question(run["base"]) or run.get("config.question")
    return question if isinstance(question, str) else ""


class Quoted(NamedTuple):
    """The difference to quote, the loss that it is of, and the noise between seeds if it has one seed."""

    estimate: Estimate
    measure: str
    noise: Noise


class ComparedRuns:
    """The runs by base name, with their evaluation; with their validation curves if the noise of one seed is needed.

    Two runs are compared over the same held-out samples or not at all: where theirs differ, a difference is NaN.
    """

    def __init__(
        self,
        runs: pd.DataFrame,
        evaluation: pd.DataFrame,
        bootstrap: pd.DataFrame,
        validation_curves: pd.DataFrame | None = None,
    ):
        self.runs = runs.copy().assign(base=runs["run"].map(base_name)).set_index("run", drop=False)
        keys = ["run", *Cell._fields]
        drawn = bootstrap.drop(columns=keys).to_numpy(float)  # all rows with the same draws: they may be subtracted
        self._draws = dict(zip(bootstrap[keys].itertuples(index=False, name=None), drawn, strict=True))
        found = evaluation[["loss", "tokens"]].to_numpy(float)  # a loss, and how many tokens were scored for it
        self._evaluated = dict(zip(evaluation[keys].itertuples(index=False, name=None), found, strict=True))
        curves = pd.DataFrame(columns=["run", "step", "val_loss"]) if validation_curves is None else validation_curves
        self._curves = {run: own.sort_values("step") for run, own in curves.groupby("run")}
        self._no_curve = curves.iloc[:0]

    def of_family(self, family: str) -> pd.DataFrame:
        """Its runs with a loss in nats per token."""
        return self.runs[(self.runs["family"] == family) & scores_tokens(self.runs)]

    def seeds(self, base: str) -> dict[int, str]:
        """Seed -> run, for all runs with this base name."""
        chosen = self.runs[self.runs["base"] == base]
        return {
            int(seed) if pd.notna(seed) else 0: run for run, seed in zip(chosen["run"], chosen["seed"], strict=True)
        }

    def first(self, base: str) -> pd.Series:
        """A run of `base`; empty if the study has none."""
        return next((self.runs.loc[run] for run in self.seeds(base).values()), pd.Series(dtype=object))

    def matched(self, bases: list[str]) -> list[list[str]]:
        """Per seed that all bases have, their runs; without a common seed, the first run of each; without
        runs of a base, none."""
        found = [self.seeds(base) for base in bases]
        if not all(found):
            return []
        common = sorted(set.intersection(*(set(own) for own in found)))
        return [[own[seed] for own in found] for seed in common] or [[next(iter(own.values())) for own in found]]

    def loss(self, run: str, cell: Cell = OVERALL) -> float:
        """Evaluation loss, by default over all sources in the mode the run was trained in; NaN if there is none."""
        return self._evaluated.get((run, *self._full(run, cell)), (np.nan, 0.0))[0]

    def draws(self, run: str, cell: Cell = OVERALL) -> np.ndarray | None:
        """Bootstrap replicates (R,) of that loss; None if this was not evaluated."""
        return self._draws.get((run, *self._full(run, cell)))

    def _full(self, run: str, cell: Cell) -> Cell:
        return cell if cell.mode else cell._replace(mode=trained_mode(self.runs.loc[run]))

    def estimate(
        self, terms: list[tuple[str, Cell]], combine: Callable[[np.ndarray], np.ndarray], level: float = LEVEL
    ) -> Estimate:
        """`combine` of evaluation losses (terms, ...) -> (...), pooled over the seeds that all terms have.

        With two or more such seeds the interval is a t interval over theirs, else a bootstrap over the videos,
        which is paired, since every row was drawn alike.
        """
        cells = [cell for _, cell in terms]
        runs = self.matched([base for base, _ in terms])
        if not runs or not all(self._same_samples(row, cells) for row in runs):
            return Estimate(n_seeds=len(runs))
        losses = [[self.loss(*pair) for pair in zip(row, cells, strict=True)] for row in runs]
        draws = [self.draws(*pair) for pair in zip(runs[0], cells, strict=True)]
        sampled = None if any(draw is None for draw in draws) else combine(np.array(draws))
        return pooled(combine(np.array(losses).T), sampled, level)

    def _same_samples(self, runs: list[str], cells: list[Cell]) -> bool:
        """Whether runs were evaluated on the same samples of the cells' sources: as many tokens are scored in them."""
        tokens = set()
        for run, cell in zip(runs, cells, strict=True):
            own = self._full(run, Cell(source=cell.source, kind=cell.kind))
            tokens.add(self._evaluated.get((run, *own), (np.nan, 0.0))[1])
        return len(tokens) == 1

    def level(self, base: str, cell: Cell = OVERALL) -> Estimate:
        """A loss, the mean over the seeds of `base`. Its interval is always over the videos, however many seeds:
        levels stand beside each other in a figure; what is claimed are differences."""
        runs = list(self.seeds(base).values())
        if not runs:
            return Estimate()
        draws = [self.draws(run, cell) for run in runs]
        sampled = None if any(draw is None for draw in draws) else np.mean(draws, axis=0)
        value = np.mean([self.loss(run, cell) for run in runs], keepdims=True)
        return replace(pooled(value, sampled), n_seeds=len(runs))

    def difference(self, base: str, other: str, cell: Cell = OVERALL) -> Estimate:
        """How far the evaluation loss of `base` lies above that of `other`."""
        return self.estimate([(base, cell), (other, cell)], difference)

    def quoted(
        self,
        bases: list[str],
        combine: Callable[[np.ndarray], np.ndarray],
        cell: Cell = OVERALL,
        which: str = "best",
        level: float = LEVEL,
    ) -> Quoted:
        """`combine` of evaluation losses, or of best or final validation losses if there are none."""
        estimate, measure = self.estimate([(base, cell) for base in bases], combine, level), EVALUATION
        if not np.isfinite(estimate.value):
            estimate, measure = self.validation_estimate(bases, combine, which, level), f"{which} {VALIDATION}"
        return Quoted(estimate, measure, self.noise(bases, combine, measure, cell))

    def noise(
        self, bases: list[str], combine: Callable[[np.ndarray], np.ndarray], measure: str, cell: Cell = OVERALL
    ) -> Noise:
        """Return the noise between seeds of `combine` of losses, if the bases have one seed in common or none; else
        they show it themselves.

        measure  EVALUATION (the loss of `cell`), or `best` or `final` VALIDATION
        """
        matched = self.matched(bases)
        losses = [self._measured(run, measure, cell) for run in matched[0]] if len(matched) == 1 else [np.nan]
        if not np.isfinite(losses).all():
            return Noise()
        weights = slopes(combine, np.array(losses))
        if not np.isfinite(weights).all():
            return Noise()
        curves = [self._curves.get(run, self._no_curve) for run in matched[0]]
        paired = self.runs.loc[matched[0], "seed"].nunique(dropna=False) == 1
        return noise_of(self._alike(matched[0][0], measure, cell), curves, weights, paired)

    def _measured(self, run: str, measure: str, cell: Cell) -> float:
        return self.loss(run, cell) if measure == EVALUATION else self.runs.loc[run, f"{measure.split()[0]}.val_loss"]

    def _alike(self, run: str, measure: str, cell: Cell) -> pd.DataFrame:
        """Run, seed and loss of the runs with several seeds, of the run's family and scored on the same tokens."""
        rows = []
        for base, own in self.of_family(self.runs.loc[run, "family"]).groupby("base", sort=False):
            first = own["run"].iloc[0]
            same_tokens = (
                self._same_samples([run, first], [cell, cell])
                if measure == EVALUATION
                else self.same_validation(run, first)
            )
            if len(own) > 1 and same_tokens:
                rows += [(base, seed, self._measured(name, measure, cell)) for seed, name in self.seeds(base).items()]
        return pd.DataFrame(rows, columns=["run", "seed", "loss"]).dropna(subset="loss")

    def validation_difference(self, base: str, other: str, which: str = "best") -> Estimate:
        """How far the best or final validation loss of `base` lies above that of `other`; over seeds."""
        return self.validation_estimate([base, other], difference, which)

    def all_same_validation(self, runs: list[str]) -> bool:
        return all(self.same_validation(runs[0], other) for other in runs[1:])

    def validation_estimate(
        self,
        bases: list[str],
        combine: Callable[[np.ndarray], np.ndarray],
        which: str = "best",
        level: float = LEVEL,
    ) -> Estimate:
        """`combine` of best or final validation losses (bases, seeds) -> (seeds,), pooled over the seeds that all have;
        NaN where they were validated on other tokens. One seed has no interval."""
        matched = self.matched(bases)
        if not matched or not self.all_same_validation(matched[0]):
            return Estimate(n_seeds=len(matched))
        losses = [self.runs.loc[names, f"{which}.val_loss"] for names in matched]
        return pooled(combine(np.array(losses, float).T), level=level)

    def same_validation(self, run: str, other: str) -> bool:
        """Whether two runs were validated on the same tokens of the same sources."""
        kinds = self.runs.loc[[run, other], self._data_fields()["mixture"]].fillna(0) > 0
        differs = {"sources", "scored tokens", "origin"} & set(self._differing(run, other))
        return not differs and bool((kinds.iloc[0] == kinds.iloc[1]).all())

    def data_differs(self, run: str, other: str) -> str:
        """What differs in the data that two runs saw, in words; empty if nothing does."""
        one, two = self.runs.loc[run], self.runs.loc[other]
        differs = self._differing(run, other)
        if pd.notna(one["samples"]) and pd.notna(two["samples"]) and one["samples"] != two["samples"]:
            differs.append("number of samples")
        return ", ".join(differs)

    def _differing(self, run: str, other: str) -> list[str]:
        """Words of DATA_FIELDS."""
        one, two = self.runs.loc[run], self.runs.loc[other]
        return [
            word
            for word, names in self._data_fields().items()
            if any(not same(one.get(name), two.get(name)) for name in names)
        ]

    def _data_fields(self) -> dict[str, list[str]]:
        """Word -> columns of the runs table (a mapping such as the mixture is several columns)."""
        return {
            word: [name for name in self.runs.columns if name == field or name.startswith(f"{field}.")]
            for field, word in DATA_FIELDS.items()
        }


def same(one, two) -> bool:
    return (pd.isna(one) and pd.isna(two)) or one == two
