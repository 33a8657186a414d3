"""The benchmarks of a study: their scores, and the inputs of each job."""

from fvlm.config.trained import WEIGHTS
from fvlm.data.sources import tables_of


class Benchmarks:
    """The benchmarks of a study, a `StudyOfRules`."""

    def __init__(self, study):
        self.study = study

    @property
    def scores(self) -> list[str]:
        """A table per benchmark and run that answers it."""
        study, settings = self.study, self.study.settings
        runs = [run for run in settings.benchmarked if run in study.runs and study.has_weights(run)]
        names, folder = settings.evaluation.benchmarks, f"{study.folder}/benchmarks"
        return [f"{folder}/{run}/{name}.csv" for name in names for run in runs]

    def inputs(self, wildcards) -> list[str]:
        """The weights of a run, and the tables of a benchmark."""
        folder = self.study.folder
        made = [f"{folder}/runs/{wildcards.run}/{WEIGHTS}", f"{folder}/tokenizer/tokenizer.json"]
        return [*made, *tables_of(self.study.settings.benchmark_source(wildcards.benchmark), folder)]
