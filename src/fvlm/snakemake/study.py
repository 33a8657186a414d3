"""The study as the rules see it: the files of each target, and the inputs and parameters of each job.

Snakemake imports this module while it parses the Snakefile, so nothing heavy may be imported here.
"""

import csv
import hashlib
import json
import shlex
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

from fvlm import data_report
from fvlm.analysis import catalog
from fvlm.analysis.finished import check_results
from fvlm.config.resolve import DEFAULT_STUDY, load_study
from fvlm.config.schema import Source, Study
from fvlm.config.study_file import OWN, complete, typed
from fvlm.config.trained import is_adopted, is_without_weights, run_of_maps
from fvlm.costs.limits import check_benchmarks, check_data, check_memory, check_parents, check_tokenizer
from fvlm.costs.speed import calibration_path, read_calibration
from fvlm.data import sources
from fvlm.errors import UserError
from fvlm.records import weights_in
from fvlm.snakemake.benchmarks import Benchmarks
from fvlm.snakemake.looks import Looks
from fvlm.snakemake.memory import STUDY, ResultsMemory, remember
from fvlm.snakemake.process import is_alone, is_target, requests_report
from fvlm.snakemake.resources import Resources
from fvlm.study.plan import plan_csv, plan_rows, plan_text


def load_default_study(workflow) -> None:
    """Load the demo's study unless the command line names another one, which Snakemake would merge into it."""
    if "study" not in workflow.config:
        local = Path(DEFAULT_STUDY)
        workflow.configfile(str(local if local.is_file() else OWN / local.name))


def open_study(config: dict, files: list, changes: dict, default_resources=None, main: bool = True) -> "StudyOfRules":
    """Resolve and check the study before the first job; a job gets the study that was saved for it.

    config              Snakemake's configuration
    files, changes      the configuration files and the --config changes that it was made of
    default_resources   Snakemake's object for the profile's default-resources, or None
    main                whether the user started this process; otherwise Snakemake started it for a job
    raises              WorkflowError, with a sentence about what is wrong
    """
    try:
        content = typed(config, changes)
        for part in changes.values():  # of a module, which gets a part of the configuration
            content = typed(content, part) if isinstance(part, dict) else content
        if main or "results" not in content:
            content = complete(content, [Path(file).parent for file in reversed(files)])
        saved = _results_folder(content) / STUDY
        if not main and saved.is_file():
            content = json.loads(saved.read_text())
        study = load_study(content)
        check_results(study)
        read_calibration(study.results)
        if not study.results_from and not is_target("preflight"):  # preflight reports all mistakes at once
            check_data(study)
            check_memory(study)
            check_benchmarks(study)
            check_parents(study)
            check_tokenizer(study)
        resources = Resources(study.runs, default_resources.args if default_resources else [])
    except UserError as error:
        raise WorkflowError(str(error)) from error
    if main:
        folder = _results_folder(content)
        remember(ResultsMemory(folder, content, lambda: is_alone(folder / "logs/.alive")))
    return StudyOfRules(study, resources)


def _results_folder(content: dict) -> Path:
    """Where results go; those made of finished results go into a folder of their own."""
    folder = Path(str(content.get("results", "")))
    return folder / "imported" if content.get("results_from") else folder


class StudyOfRules:
    """Files, inputs and parameters of the rules. A method that takes `wildcards` is given to a rule as it is.

    settings   the resolved study
    folder     where its results go; those made of finished results (`results_from`) go into a folder of their own
    """

    def __init__(self, settings: Study, resources: Resources):
        self.settings, self.resources = settings, resources
        self.runs, self.sources = settings.runs, settings.sources
        self.folder = f"{settings.results}/imported" if settings.results_from else settings.results
        self._shards = cache(self._find_shards)

    def command(self, command: str) -> str:
        """Return a rule's command `NAME ...` of fvlm with the study that was saved for the jobs."""
        name, _, arguments = command.partition(" ")
        return f"python -m fvlm {name} --study={shlex.quote(f'{self.folder}/{STUDY}')} {arguments}"

    # --- targets ---

    @property
    def stages(self) -> list[str]:
        return [name for name, run in self.runs.items() if run.family == "stage"]

    def pattern(self, stages: bool) -> str:
        """The regular expression of the names of all stages, or of all other runs."""
        names = [name for name, run in self.runs.items() if (run.family == "stage") == stages]
        return "|".join(names) or "(?!)"  # matches nothing; Snakemake takes an empty one for no constraint

    @property
    def evaluated(self) -> list[str]:
        """The runs to evaluate: those of the study's families that have weights."""
        chosen = [name for name, run in self.runs.items() if run.family in self.settings.evaluation.families]
        return [name for name in chosen if self.has_weights(name)]

    @property
    def attention_maps(self) -> list[str]:
        """The attention maps that the study shows, if their run has weights."""
        run = None if self.settings.results_from else run_of_maps(self.runs.values())
        return [f"{self.folder}/attention/{run.name}.npz"] if run and self.has_weights(run.name) else []

    @property
    def looks(self) -> Looks:
        return Looks(self)

    @property
    def benchmarks(self) -> Benchmarks:
        return Benchmarks(self)

    @property
    def indices(self) -> list[str]:
        return [self._index(name) for name in self.settings.used_sources]

    @property
    def data_report(self) -> list[str]:
        """The page, then its tables and figures."""
        return [f"{self.folder}/data/{name}" for name in ("report.html", *data_report.FILES)]

    @property
    def prepared(self) -> list[str]:
        """What a study makes before and beside its trainings; finished results have nothing of it."""
        if self.settings.results_from:
            return []
        return [f"{self.folder}/plan.txt", *self.indices, f"{self.folder}/tables/data.csv", *self.data_report]

    @property
    def tables(self) -> list[str]:
        return self._tables([*catalog.COLLECTED, *catalog.TABLES])

    @property
    def figures(self) -> list[str]:
        """The figures that are always made. Of finished results (`draw_results` makes their figures) the list of those
        not drawn, and those that were drawn and are lost."""
        if not self.settings.results_from:
            return self._figures(self._possible(catalog.STANDARD))
        if not self.at_once:
            return self.drawn
        return [self.not_drawn, *(path for path in self._figures(self._drawn) if not Path(path).exists())]

    @property
    def drawn(self) -> list[str]:
        """The figures of the report: those that are always made, without those that finished results do not allow."""
        if not self.settings.results_from:
            return self.figures
        return [self.not_drawn, *self._figures(self._drawn)]

    @property
    def decisions(self) -> list[str]:
        """The page of the decisions, and their text for the report."""
        return [f"{self.folder}/decisions.html", f"{self.folder}/decisions.rst"]

    @property
    def front_page(self) -> str:
        return f"{self.folder}/index.html"

    @property
    def shown_first(self) -> list[str]:
        """What the first page shows or links to."""
        tables = self._tables(("runs", "benchmarks"))
        return [*self.decisions, *tables, *self.figures, *self.prepared, *self.looks.pages]

    # --- plan ---

    @property
    def calibration(self) -> list[str]:
        """The file that `fvlm calibrate` wrote, if it has been run."""
        path = calibration_path(self.folder)
        return [str(path)] if path.exists() else []

    def plan_digest(self, wildcards) -> str:
        """Digest of the whole plan: sources as declared, execution of the runs and GPU prices included."""
        rows = plan_rows(self.settings)
        return hashlib.sha256((plan_text(self.settings, rows) + plan_csv(rows)).encode()).hexdigest()

    # --- data ---

    def demo_family(self, wildcards) -> str:
        return self.sources[wildcards.source].demo_family or wildcards.source

    def source_folder(self, wildcards) -> str:
        return str(sources.source_folder(self.sources[wildcards.source], self.folder))

    def source_reader(self, wildcards) -> str:
        return sources.reader_of(self.sources[wildcards.source])

    def source_table(self, wildcards) -> str:
        return sources.table_of(self.sources[wildcards.source])

    def shard_inputs(self, wildcards) -> list[str]:
        _, inputs = self._shards(wildcards.source)
        return self._present(inputs(int(wildcards.shard)), self.sources[wildcards.source])

    def last_shard(self, wildcards) -> str:
        """The option of a source's last shard."""
        count, _ = self._shards(wildcards.source)
        return "--last" if int(wildcards.shard) + 1 == count else ""

    def reject_limit(self, wildcards) -> str:
        """The option of a source that may be rejected entirely.

        Any other share is checked by the index, so that another limit decodes nothing again.
        """
        return "--max-reject 1" if self.sources[wildcards.source].max_reject == 1 else ""

    def squash(self, wildcards) -> str:
        """The option of a source whose frames are not cropped."""
        return "" if self.sources[wildcards.source].crop else "--squash"

    def index_tars(self, wildcards) -> list[str]:
        source = self.sources[wildcards.source]
        if source.reader == "shards" and source.samples is not None and not sources.has_tars(source):
            return []  # announced by `samples:`; a plan needs no data
        return self._present(sources.tars_of(source, self.settings), source)

    def ledgers(self, wildcards) -> list[str]:
        return sources.ledgers_of(self.settings)

    def tokenizer_tables(self, wildcards) -> list[str]:
        """The tables with the texts that a tokenizer is trained on; none for one with weights of its own."""
        if self.settings.tokenizer.weights:
            return []
        trained_on = [self.sources[name] for name in self.settings.tokenizer_sources]
        tables = [source for source in trained_on if source.reader in ("folder", "demo")]
        return [str(sources.source_table(source, self.folder)) for source in tables]

    def tokenizer_choice(self, wildcards) -> str:
        choice = self.settings.tokenizer
        return f"--weights {shlex.quote(choice.weights)}" if choice.weights else f"--vocabulary {choice.vocabulary}"

    def data_report_digest(self, wildcards) -> str:
        return data_report.digest(self.settings)

    # --- runs ---

    def training_inputs(self, wildcards) -> dict:
        """The inputs of a training; an adopted run has none, since its data are elsewhere."""
        run = self.runs[wildcards.run]
        if is_adopted(Path(self.folder, "runs", run.name), run.digest):
            return {}
        indices = [self._index(name) for name in run.data.sources]
        inputs = {
            "indices": list(dict.fromkeys(indices + self.held_out_indices(run))),
            "tokenizer": f"{self.folder}/tokenizer/tokenizer.json",
        }
        if run.parent_path:
            inputs["parent"] = str(weights_in(run.parent_path))
        elif run.parent:
            inputs["parent"] = f"{self.folder}/runs/{run.parent}/model/best.safetensors"
        return inputs

    def evaluation_inputs(self, wildcards) -> dict:
        folder = f"{self.folder}/runs/{wildcards.run}"
        return {
            "weights": f"{folder}/model/best.safetensors",
            "summary": f"{folder}/run_summary.json",
            "indices": self.held_out_indices(self.runs[wildcards.run]),
            "tokenizer": f"{self.folder}/tokenizer/tokenizer.json",
        }

    # --- tables and figures ---

    def table_inputs(self, wildcards) -> list[str]:
        return self._tables(catalog.TABLES[wildcards.table].needs)

    def table_labels(self, wildcards) -> dict:
        return {"what": catalog.TABLES[wildcards.table].title, "form": "table"}

    def figure_tables(self, wildcards) -> list[str]:
        return self._tables(catalog.FIGURES[wildcards.figure].needs)

    def figure_attention(self, wildcards) -> list[str]:
        return self.attention_maps if catalog.FIGURES[wildcards.figure].attention else []

    def figure_labels(self, wildcards) -> dict:
        return {"what": catalog.FIGURES[wildcards.figure].title, "form": "figure"}

    def table_comparisons(self, wildcards) -> str:
        return self._comparisons(catalog.TABLES[wildcards.table])

    def figure_comparisons(self, wildcards) -> str:
        return self._comparisons(catalog.FIGURES[wildcards.figure])

    # --- finished results: one job makes all tables, and another one all figures ---

    @property
    def at_once(self) -> bool:
        """Whether that is so. A report is made of the rules `table` and `figure`, which have its captions."""
        return bool(self.settings.results_from) and not requests_report()

    @property
    def not_drawn(self) -> str:
        return f"{self.folder}/figures/not_drawn.csv"

    @property
    def imported_tables(self) -> list[str]:
        return self._tables([*catalog.COLLECTED, *(catalog.TABLES if self.at_once else ())])

    @property
    def derived_option(self) -> str:
        return "--derived" if self.at_once else ""

    @property
    def tables_alone(self) -> str:
        """The pattern of the tables that have a job of their own."""
        return "(?!)" if self.at_once else "|".join(catalog.TABLES)

    @property
    def empty_option(self) -> str:
        """The option of `fvlm figure` for a figure with nothing to draw: of finished results it is not made."""
        return "--empty refuse" if self.at_once else ""

    @property
    def _drawn(self) -> list[str]:
        """The figures that the last drawing of finished results made."""
        try:
            with open(self.not_drawn, newline="", encoding="utf-8") as file:
                missing = {row["figure"] for row in csv.DictReader(file)}
        except (OSError, KeyError):
            return []
        return [name for name in catalog.OF_RESULTS if name not in missing]

    @property
    def imported_architectures(self) -> dict[str, str]:
        """The architecture of each ablation, which imported results take from the name of the run."""
        return {name: ablation.architecture for name, ablation in self.settings.comparisons.ablations.items()}

    # --- parts of the above ---

    def has_weights(self, run: str) -> bool:
        """Whether a run has weights, or will have them once it is trained."""
        return not is_without_weights(Path(self.folder, "runs", run), self.runs[run].digest)

    def _comparisons(self, entry: catalog.Entry) -> str:
        """A digest of the comparisons and questions, for a table or figure that shows them."""
        return self.settings.comparisons.digest if entry.comparisons else ""

    def _index(self, source: str) -> str:
        return f"{self.folder}/index/{source}.npz"

    def _possible(self, names) -> list[str]:
        """The figures that the study's configuration may draw."""
        has_grid = any(run.family == "grid" for run in self.runs.values())
        figures = {name: catalog.FIGURES[name] for name in names}
        if not self.settings.results_from:
            figures = {name: one for name, one in figures.items() if has_grid or not one.grid}
            figures = {name: one for name, one in figures.items() if self.attention_maps or not one.attention}
            figures = {name: one for name, one in figures.items() if self.benchmarks.scores or not one.benchmarks}
        return list(figures)

    def _figures(self, names) -> list[str]:
        return [f"{self.folder}/figures/{name}.{kind}" for name in names for kind in ("png", "pdf", "rst")]

    def _tables(self, names) -> list[str]:
        return [f"{self.folder}/tables/{name}.csv" for name in names]

    def held_out_indices(self, run) -> list[str]:
        """Indices with the held-out samples: a source's own, or its partner's."""
        partners = {name: self.sources[name].held_out for name in run.data.sources}
        return [self._index(other if isinstance(other, str) else name) for name, other in partners.items()]

    def _find_shards(self, source: str):
        """The number of a source's shards, and the function from a shard's number to its inputs."""
        count = sources.shard_count(self.sources[source], self.settings)
        return count, sources.shard_inputs(self.sources[source], self.folder)

    def _present(self, paths, source: Source) -> list[str]:
        """The inputs without files of the user that are only announced by `samples:`, since a plan needs no data."""
        paths = [str(path) for path in paths]
        if source.reader == "demo" or source.samples is None:
            return paths
        return [path for path in paths if path.startswith(f"{self.folder}/") or Path(path).exists()]
