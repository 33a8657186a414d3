"""The rows of the decision page: the sweeps of config/comparisons.yaml, and one for each ablation that none names."""

from dataclasses import dataclass

import pandas as pd

from fvlm.analysis.compare.runs import DATA_FIELDS, ComparedRuns, question_of
from fvlm.analysis.decisions.settings import changed, lines, value
from fvlm.config.comparisons import Comparisons, Sweep


@dataclass(frozen=True)
class Compared:
    """A sweep as a row of decisions; `varies`: what differs in its runs' data on purpose, words of DATA_FIELDS."""

    name: str
    sweep: Sweep
    varies: tuple[str, ...]

    @property
    def bases(self) -> tuple[str, ...]:
        return (self.sweep.reference, *self.sweep.runs)

    def words(self, run: pd.Series) -> str:
        """An alternative in a sentence, with the run's name in brackets."""
        base, text = run["base"], self._filled(self.sweep.runs[run["base"]], run)
        return text if base in text else f"{text} ({base})"

    def against(self, run: pd.Series, default: str) -> str:
        """The reference in a sentence; with its name if it is not the default."""
        base, text = run["base"], self._filled(self.sweep.against, run)
        return text if base in text or base == default else f"{text} ({base})"

    def _filled(self, words: str, run: pd.Series) -> str:
        """`words` with the value of the setting; the run's name if the table of runs does not have that value."""
        setting = value(run, self.sweep.settings[0]) if self.sweep.settings else ""
        known = words and (setting or "{setting}" not in words)
        return words.replace("{setting}", setting) if known else run["base"]


def compared_sweeps(study: ComparedRuns, comparisons: Comparisons) -> list[Compared]:
    named = {base for sweep in comparisons.sweeps.values() for base in (sweep.reference, *sweep.runs)}
    named |= {comparisons.reference, *(comparisons.factorial.runs.values() if comparisons.factorial else ())}
    own = [base for base in study.of_family("ablation")["base"].drop_duplicates() if base not in named]
    sweeps = [Compared(name, sweep, _varied(sweep.settings)) for name, sweep in comparisons.sweeps.items()]
    return sweeps + [_own(study, base, comparisons) for base in own]


def _varied(settings: tuple[str, ...]) -> tuple[str, ...]:
    """Words of DATA_FIELDS, if the settings are fields of the data."""
    return tuple(word for field, word in DATA_FIELDS.items() if field.removeprefix("config.") in settings)


def _own(study: ComparedRuns, base: str, comparisons: Comparisons) -> Compared:
    """The sweep of one ablation that no entry names, in words of what it changes."""
    _, sweep = comparisons.sweep_of(base) or ("", None)
    reference, samples = (sweep.reference, sweep.samples) if sweep else (comparisons.reference, "all")
    run, other = study.first(base), study.first(reference)
    settings = tuple(changed(run, other)) if len(other) else ()
    data_alone = bool(settings) and all(key.startswith("data.") for key in settings)
    varies = tuple(study.data_differs(run["run"], other["run"]).split(", ")) if data_alone else ()
    question = question_of(run, comparisons)
    question = question[:1].upper() + question[1:] or f"What does {base} change?"
    changes = lines(run, list(settings))
    words = f"{base} ({changes})" if changes else base
    sweep = Sweep(question=question, runs={base: words}, reference=reference, settings=settings, samples=samples)
    return Compared(base, sweep, varies)
