"""The pages that show where models look: which there are, and the inputs and options of each one's job."""

import shlex
from pathlib import Path

from fvlm.config.trained import FINISHED, WEIGHTS

SIDE_BY_SIDE = ("baseline", "A6", "B1")  # runs on one page: two passes, one pass, pooled tokens


class Looks:
    """The pages of a study, a `StudyOfRules`. A page is named after its first run."""

    def __init__(self, study):
        self.study = study

    @property
    def pages(self) -> list[str]:
        """One for the run with attention maps, and one for the runs of SIDE_BY_SIDE."""
        names = [Path(path).stem for path in self.study.attention_maps]
        first, *others = SIDE_BY_SIDE
        trained = not self.study.settings.results_from and first in self.study.evaluated
        if trained and set(others) & set(self.study.evaluated) and self._holds_out_videos(first):
            names.append(first)
        return [f"{self.study.folder}/look/{name}.html" for name in names]

    def inputs(self, wildcards) -> list[str]:
        """Weights, held-out samples and tokenizer of all runs of a page."""
        study, names = self.study, self._of_page(wildcards.run)
        files = [f"{study.folder}/runs/{name}/{file}" for name in names for file in (WEIGHTS, FINISHED)]
        indices = [index for name in names for index in study.held_out_indices(study.runs[name])]
        return [*files, *dict.fromkeys(indices), f"{study.folder}/tokenizer/tokenizer.json"]

    def options(self, wildcards) -> str:
        """The options of `fvlm look` that name the runs of a page."""
        names = self._of_page(wildcards.run)
        return " ".join(f"--run {shlex.quote(f'{self.study.folder}/runs/{name}')}" for name in names)

    def _of_page(self, run: str) -> list[str]:
        beside = SIDE_BY_SIDE if run == SIDE_BY_SIDE[0] else ()
        return [run, *(name for name in beside if name != run and name in self.study.evaluated)]

    def _holds_out_videos(self, run: str) -> bool:
        sources = [self.study.sources[name] for name in self.study.runs[run].data.sources]
        return any(source.kind == "video" and source.held_out is not None for source in sources)
