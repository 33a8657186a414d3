"""The pages that show where models look: which there are, and the inputs and options of each one's job."""

import shlex
from pathlib import Path

from fvlm.config.trained import FINISHED, WEIGHTS


class Looks:
    """The pages of a study, a `StudyOfRules`. A page is named after its first run."""

    def __init__(self, study):
        self.study, self.side_by_side = study, study.settings.comparisons.look

    @property
    def pages(self) -> list[str]:
        """One for the run with attention maps, and one for those that comparisons.yaml names."""
        names = [Path(path).stem for path in self.study.attention_maps]
        first = next(iter(self.side_by_side), None)
        if first in self.study.evaluated and not self.study.settings.results_from:
            names += [first] if len(self._of_page(first)) > 1 and self._has_videos(first) else []
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
        beside = self.side_by_side if run in self.side_by_side[:1] else ()
        return [run, *(name for name in beside if name != run and name in self.study.evaluated)]

    def _has_videos(self, run: str) -> bool:
        """Whether some held-out videos can be shown: a run that reads one frame of a video has none."""
        data = self.study.runs[run].data
        held_out = [self.study.sources[name] for name in data.sources if self.study.sources[name].held_out is not None]
        return data.max_frames > 1 and any(source.kind == "video" for source in held_out)
