"""What a study prints before its first job and after its last, and its report."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.settings.enums import Quietness

from fvlm.analysis import catalog
from fvlm.config.changes import runs_to_train_again
from fvlm.files import last_lines
from fvlm.records import newest_checkpoint
from fvlm.snakemake.module import is_training
from fvlm.snakemake.package import OF_JOBS, refuse_missing, uses_conda
from fvlm.snakemake.process import is_target, requests_report
from fvlm.snakemake.study import StudyOfRules
from fvlm.study.plan import plan_rows, totals

BEGUN = time.time()  # of this snakemake, which imports the module first
MOST_LEFT_OUT = 20  # lines about rows and files of finished results that could not be read
PRINT_IT_THEMSELVES = ("plan", "preflight", "calibrate")


def announce(study: StudyOfRules, workflow) -> None:
    """Print the plan's totals, or which finished results are drawn; with --quiet all nothing."""
    if _is_silent(workflow) or any(is_target(name) for name in PRINT_IT_THEMSELVES):
        return
    finished = ", ".join(study.settings.results_from)
    if finished:
        lines = [f"tables and figures of {finished}; nothing is trained"]
    else:
        settings = study.settings
        lines = [f"study {settings.study}, results in {study.folder}", *totals(settings, plan_rows(settings))]
        lines += ["each run's share: `fvlm plan`, or plan.csv of the results", *runs_to_train_again(settings)]
    print(*lines, sep="\n", file=sys.stderr, flush=True)


def start(study: StudyOfRules, workflow, source: str) -> None:
    """Print the plan and refuse to start without the Python packages of the jobs, which pip installs from `source`."""
    announce(study, workflow)
    if not (uses_conda(workflow) or study.settings.results_from or is_target("plan")):
        refuse_missing(OF_JOBS, (source,))


def targets(study: StudyOfRules) -> list[str]:
    """Return all results; for `snakemake --report` those that exist, so that an unfinished study has a report too."""
    others = [*study.prepared, study.front_page, *study.decisions, *study.tables, *study.looks.pages]
    if requests_report(after_run=False):
        return [path for path in (*others, *study.drawn) if Path(path).exists()]
    return [*others, *study.figures]


def captions(path_of: Callable[[str], str]) -> dict[str, str]:
    """Return the captions of the report: of each figure under its name, of each table under NAME_table.

    A result without an entry in captions.yaml has its title as caption.

    path_of   Snakemake's path of a file, given relative to the rules
    """
    texts = yaml.safe_load(Path(path_of("../workflow/report/captions.yaml")).read_text(encoding="utf-8"))
    figures = {name: texts["figures"].get(name, figure.title) for name, figure in catalog.FIGURES.items()}
    tables = {f"{name}_table": texts["tables"].get(name, table.title) for name, table in catalog.TABLES.items()}
    return figures | tables


def make_report(study: StudyOfRules, workflow, target: str) -> None:
    """Make the self-contained report of a finished study unless it is newer than all results; print where to look.

    target   the rule `all`, which has another name in a module
    """
    page = Path(study.folder) / "report.html"
    results = [Path(path) for path in (*study.tables, *study.drawn, *study.decisions)]
    if not all(path.exists() for path in results):
        return  # only a part of the study was requested
    if not page.exists() or any(path.stat().st_mtime > page.stat().st_mtime for path in results):
        command = [sys.executable, "-m", "snakemake", target, "--report", str(page), *_same_workflow(workflow)]
        log = Path(study.folder) / "logs/report.log"
        log.parent.mkdir(exist_ok=True)
        with open(log, "w") as output:
            done = subprocess.run(command, stdout=output, stderr=output)
        if done.returncode:
            raise WorkflowError(f"{page} could not be made, see {log}; the next snakemake tries again")
    if _is_silent(workflow):
        return
    lines = [f"\nreport   {page}"]
    lines += [f"reasons  {study.not_drawn}: figures that cannot be drawn"] if study.at_once else []
    lines += [f"open     {study.front_page}"]
    print(*lines, sep="\n", file=sys.stderr)


def report_left_out(study: StudyOfRules, workflow) -> None:
    """Print what the job that imports finished results could not read, if it ran in this call."""
    log = Path(study.folder) / "logs/import_results.log"
    if _is_silent(workflow) or not log.exists() or log.stat().st_mtime < BEGUN:
        return
    lines = [line for line in last_lines(log, MOST_LEFT_OUT) if line.startswith("left out: ")]
    print(*lines, sep="\n", end="\n" * bool(lines), file=sys.stderr)


def _same_workflow(workflow) -> list[str]:
    """The arguments with which another snakemake parses what this one has parsed."""
    settings = workflow.config_settings
    arguments = ["--cores", "1", "--nolock", "--snakefile", workflow.main_snakefile, "--directory", os.getcwd()]
    arguments += ["--configfile", *map(str, settings.configfiles)] if settings.configfiles else []
    changes = [f"{key}={json.dumps(value)}" for key, value in settings.config.items()]
    arguments += ["--config", *changes] if changes else []
    return arguments + (["--replace-workflow-config"] if settings.replace_workflow_config else [])


def report_failures(study: StudyOfRules, workflow) -> None:
    """Print which jobs failed, the last line of each one's log, and what the next call does.

    Snakemake's scheduler lists the jobs that failed in their last try. Its events and its log file also hold tries that
    were repeated, and lack jobs whose outputs were refused.
    """
    if _is_silent(workflow):
        return
    failed = [job for job in workflow.scheduler.failed if _is_of(study, job)]
    lines = sorted(line for job in failed for line in _failures(study, job))
    head = f"Failed jobs ({len(lines)}), each with the last line of its log:" if lines else "Stopped."
    print(
        f"\n{head}", *lines,
        "The same command goes on: finished files stay, and trainings resume from their checkpoints (see fvlm status).",
        sep="\n", file=sys.stderr, flush=True,
    )  # fmt: skip


def _is_of(study: StudyOfRules, job) -> bool:
    """Return whether a job, or a member of a group, belongs to this study, and not to a Snakefile that uses it."""
    members = job if job.is_group() else [job]
    return any(member.log and Path(member.log[0]).is_relative_to(study.folder) for member in members)


def _failures(study: StudyOfRules, job) -> list[str]:
    """Return what a failed job reports; of a group only the members that have written something to their logs."""
    if not job.is_group():
        return [_failure(study, job)]
    members = [member for member in job if member.log and _last_line(member)]
    return [_failure(study, member) for member in members] or [f"  group {job.name}: nothing in the logs of its jobs"]


def _failure(study: StudyOfRules, job) -> str:
    line = _last_line(job) or "nothing in its log since this call began"
    text = f"  {' '.join([job.rule.name, *job.wildcards])}: {line}\n    {job.log[0]}"
    if is_training(job):
        checkpoint = newest_checkpoint(Path(study.folder) / "runs" / job.wildcards.run / "state")
        text += f"; newest checkpoint: step {checkpoint[0]}" if checkpoint else "; no checkpoint yet"
    return text


def _last_line(job) -> str:
    """Return the last line of a job's log; empty if the job died before it wrote, as when Slurm does not accept it."""
    log = Path(job.log[0])  # each rule has one
    is_new = log.exists() and log.stat().st_mtime > BEGUN
    return "".join(last_lines(log, 1)) if is_new else ""


def _is_silent(workflow) -> bool:
    return Quietness.ALL in (workflow.output_settings.quiet or ())
