"""What the files in a results folder were made from, kept in that folder.

Snakemake remembers the parameters of each job in .snakemake/ of the working directory. Results that were copied, or
whose .snakemake/ was removed, would pass for results of any configuration. So the parameters are stored beside the
results as well, and a run's own summary decides whether the run is up to date.
"""

import json
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import snakemake.api  # also imports snakemake.workflow, which cannot be imported first
from snakemake.exceptions import WorkflowError
from snakemake.persistence import RECORD_FORMAT_VERSION, MetadataRecord

from fvlm.config.trained import ADOPTED, FINISHED, OF_A_RUN, keep_earlier, problem_of_files, summary_in
from fvlm.files import write_beside

MADE_FROM = "made_from.jsonl"  # in a results folder: {"file": ..., "params": [...]}; later lines win
STUDY = "study.json"  # in a results folder: the complete study, which its jobs read
HERE = "'{results}/"  # stands for the results folder in stored parameters, so that it may be renamed


class ResultsMemory:
    """The memory of one results folder.

    folder      the results folder
    study       the complete study that Snakemake parsed
    is_alone    tells whether no other snakemake is at work on this folder, and holds it from then on
    """

    def __init__(self, folder: str, study: dict, is_alone: Callable[[], bool]):
        self.folder, self.study, self.is_alone = Path(folder), study, is_alone
        self._runs: dict[str, tuple[str | None, bool]] = {}

    def begin(self) -> None:
        """Save the study for the jobs, before the first of them starts.

        raises   WorkflowError if another snakemake has jobs that read another study from there
        """
        path, text = self.folder / STUDY, json.dumps(self.study, indent=1, default=str) + "\n"
        alone = self.is_alone()
        if path.exists() and path.read_text() == text:
            return
        if path.exists() and not alone:
            raise WorkflowError(
                f"another snakemake is at work on {self.folder}, and its jobs read {path}, a study with other "
                "settings; wait until it has ended, or give this one another `results:`"
            )
        write_beside(path, lambda part: part.write_text(text))

    def params_of_run(self, path: str) -> list[str] | None:
        """Return the parameters that the run of a file was trained with; None if it is no file of a finished run."""
        digest, _ = self._run_of(path)
        return [repr(digest)] if digest else None

    def is_adopted(self, path: str) -> bool:
        """Return whether a file belongs to an adopted run; what Snakemake noted of it is of a training before that."""
        return self._run_of(path)[1]

    def params(self, path: str) -> list[str] | None:
        """Return the parameters that a file was made with, as Snakemake writes them; None if they are not known."""
        stored = self._stored.get(self._inside(path))
        return stored and [text.replace(HERE, f"'{self.folder}/", 1) for text in stored]

    def store(self, path: str, params: list[str]) -> None:
        """Store the parameters that a file was made with."""
        inside = self._inside(path)
        params = [text.replace(f"'{self.folder}/", HERE, 1) if text.startswith("'") else text for text in params]
        if inside is None or self._stored.get(inside) == params:
            return
        self._stored[inside] = params
        with open(self.folder / MADE_FROM, "a", encoding="utf-8") as file:
            file.write(json.dumps({"file": inside, "params": params}) + "\n")

    def keep_earlier(self, job) -> None:
        """Keep the finished run that a training will replace."""
        for path in job.output:
            if (self._inside(path) or "").startswith("runs/") and path.endswith(FINISHED):
                keep_earlier(Path(path).parent, job.params.digest)

    def _inside(self, path: str) -> str | None:
        path = Path(path)
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else None

    def _run_of(self, path: str) -> tuple[str | None, bool]:
        """The digest of the configuration of a file's run, and whether the run was adopted.

        The digest is None if it is no file of a finished run. If a file of the run is damaged, a sentence about it
        replaces the digest, which no digest equals.
        """
        parts = Path(self._inside(path) or "").parts
        if parts[:1] != ("runs",) or "/".join(parts[2:]) not in OF_A_RUN:
            return None, False
        run = parts[1]
        if run not in self._runs:
            folder = self.folder / "runs" / run
            summary = summary_in(folder)
            problem = problem_of_files(folder, summary) if summary else ""
            self._runs[run] = problem or summary.get("digest"), ADOPTED in summary
        return self._runs[run]

    def forget(self) -> None:
        """Read the summaries again: a run may have finished."""
        self._runs.clear()

    @cached_property
    def _stored(self) -> dict[str, list[str]]:
        found = {}
        try:
            lines = (self.folder / MADE_FROM).read_text(encoding="utf-8").splitlines()
        except OSError:
            return found
        for line in lines:
            try:
                entry = json.loads(line)
                found[entry["file"]] = entry["params"]
            except (ValueError, KeyError, TypeError):  # a line that a kill has cut
                continue
        return found


MEMORIES: dict[Path, ResultsMemory] = {}  # of all studies that this snakemake has parsed, by results folder


def remember(memory: ResultsMemory) -> None:
    """Let Snakemake remember in a results folder, too."""
    MEMORIES[memory.folder] = memory
    for name in ("FilePersistence", "DbPersistence"):  # Snakemake makes one of them once all rules are parsed
        original = getattr(snakemake.workflow, name)
        if not issubclass(original, Remembering):
            setattr(snakemake.workflow, name, type(name, (Remembering, original), {}))


def memory_of(path: str) -> ResultsMemory | None:
    """The memory of the innermost results folder that a file lies in."""
    return next((MEMORIES[folder] for folder in Path(path).parents if folder in MEMORIES), None)


class Parameters(MetadataRecord):
    """Parameters of a file that no job of this folder has made. A report skips it: it has no rule and no times."""

    def __getitem__(self, key: str):
        raise KeyError(key)


class Remembering:
    """Snakemake's memory of the working directory, extended by that of the results folders."""

    def deactivate_cache(self) -> None:
        """Snakemake calls this when all is planned and before the first job, but not in a dry run."""
        for memory in MEMORIES.values():
            memory.begin()
            for job in self.dag.needrun_jobs():
                memory.keep_earlier(job)
        super().deactivate_cache()

    def _clear_cache(self) -> None:
        super()._clear_cache()
        for memory in MEMORIES.values():
            memory.forget()

    def _read_record(self, key: str) -> MetadataRecord | None:
        record, memory = super()._read_record(key), memory_of(key)
        if memory is None:
            return record
        if memory.is_adopted(key):
            record = None
        params = memory.params_of_run(key)  # also of a run that was trained by hand, or copied here
        if params is None and record is None:
            params = memory.params(key)
        if params is None:
            return record
        known = Parameters(record_format_version=RECORD_FORMAT_VERSION) if record is None else record
        return known.model_copy(update={"params": params})

    def _filter_incomplete_keys(self, keys: Iterable[str]) -> set[str]:
        """Return the files of interrupted jobs; a run that was adopted after its training was killed is whole."""
        marked = super()._filter_incomplete_keys(keys)
        return {key for key in marked if not ((memory := memory_of(key)) and memory.is_adopted(key))}

    def _write_record(self, key: str, record: MetadataRecord) -> None:
        super()._write_record(key, record)
        memory = memory_of(key)
        if memory is not None:
            memory.store(key, record.params)
