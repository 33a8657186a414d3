"""Which runs answer which question: the typed content of config/comparisons.yaml.

`load_study` reads and checks it. Tables, figures and decisions get the runs that they compare from here alone.
"""

import hashlib
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ablation(Entry):
    """What the analysis needs to know about an entry of config/ablations.yaml."""

    question: str = ""
    architecture: str = "foveated"


class Sweep(Entry):
    """Alternatives that differ from one reference run in one thing."""

    question: str
    runs: dict[str, str] = Field(min_length=1)  # alternative: its words in a sentence; {setting}: value of settings[0]
    reference: str  # left out: the reference of all comparisons
    against: str = ""  # the words for the reference in a sentence; left out: its name
    settings: tuple[str, ...] = ()  # fields of the configuration that the answer sets
    samples: Literal["all", "image"] = "all"  # kind of the held-out samples that the runs are compared on
    also: str = ""  # further names, with wildcards, that imported runs of this sweep may have


class Cells(Entry):
    """The runs of the 2 x 2 of query depth and fine pass."""

    deep_fine: str
    shallow_fine: str
    deep_coarse: str
    shallow_coarse: str


class Factorial(Entry):
    question: str
    cells: Cells
    settings: tuple[str, ...] = ()

    @property
    def runs(self) -> dict[str, str]:
        """Cell -> run."""
        return self.cells.model_dump()


class BothOrders(Entry):
    """The run that is trained and evaluated with the question first and with the video first."""

    question: str
    run: str
    settings: tuple[str, ...] = ()


class Pair(Entry):
    """Two ablations of the two architectures of the scaling grid."""

    foveated: str
    pooled: str


class FigureRuns(Entry):
    """Run -> its name in the legend, in the order of the legend, by the name of the figure."""

    foveated_vs_alternatives: dict[str, str] = {}
    token_efficiency: dict[str, str] = {}
    freezing: dict[str, str] = {}


class Published(Entry):
    """Scores of a model on benchmarks, in per cent, as others published them."""

    model: str
    scores: dict[str, float] = Field(min_length=1)  # benchmark: score
    source: str


class Benchmarks(Entry):
    runs: dict[str, str] = {}  # run: its name in the figure; the last stage is added
    published: tuple[Published, ...] = ()

    @property
    def digest(self) -> str:
        """Changes exactly when a published score, or a run that answers, changes."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class Comparisons(Entry):
    reference: str  # the run that every ablation is compared with unless a sweep names another one
    sweeps: dict[str, Sweep] = {}
    sight: str = "Does the model use its frames?"  # the question that another sample's frames answer
    factorial: Factorial | None = None
    question_first: BothOrders | None = None
    gap: Pair | None = None
    figures: FigureRuns = FigureRuns()
    benchmarks: Benchmarks = Benchmarks()
    look: tuple[str, ...] = ()  # runs that show the same videos side by side on one page
    ablations: dict[str, Ablation] = {}  # every entry of config/ablations.yaml and of the study, by name

    @property
    def digest(self) -> str:
        """Changes exactly when a comparison or a question changes."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @property
    def named(self) -> dict[str, str]:
        """Run -> the first place of comparisons.yaml that names it."""
        places = [("reference", [self.reference])]
        places += [(f"sweeps: {name}", [sweep.reference, *sweep.runs]) for name, sweep in self.sweeps.items()]
        places += [("factorial: cells", self.factorial.runs.values())] if self.factorial else []
        places += [("question_first", [self.question_first.run])] if self.question_first else []
        places += [("gap", [self.gap.foveated, self.gap.pooled])] if self.gap else []
        places += [(f"figures: {name}", runs) for name, runs in self.figures.model_dump().items()]
        places += [("benchmarks: runs", self.benchmarks.runs), ("look", self.look)]
        found: dict[str, str] = {}
        for place, runs in places:
            for run in runs:
                found.setdefault(run, place)
        return found

    def question(self, run: str) -> str:
        """The question of an ablation; empty if the configuration has none."""
        return self.ablations[run].question if run in self.ablations else ""

    def sweep_of(self, run: str) -> tuple[str, Sweep] | None:
        """The first sweep that a run belongs to, and its name; None for the reference of all comparisons."""
        if run == self.reference:
            return None
        for name, sweep in self.sweeps.items():
            if run in sweep.runs or run == sweep.reference or (sweep.also and fnmatchcase(run, sweep.also)):
                return name, sweep
        return None
