"""What a study prints before its first job and after its last, and its report."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.settings.enums import Quietness

from fvlm.analysis import catalog
from fvlm.files import last_lines
from fvlm.records import newest_checkpoint
from fvlm.snakemake.process import is_target
from fvlm.snakemake.study import StudyOfRules
from fvlm.study.plan import plan_text

BEGUN = time.time()  # of this snakemake, which imports the module first
PRINT_IT_THEMSELVES = ("plan", "preflight", "calibrate")


def announce(study: StudyOfRules, quiet: Collection[Quietness] | None) -> None:
    """Print the plan, or which finished results are drawn.

    quiet   Snakemake's --quiet; nothing is printed if it has `all`
    """
    if _is_silent(quiet) or any(is_target(name) for name in PRINT_IT_THEMSELVES):
        return
    finished = ", ".join(study.settings.results_from)
    text = f"tables and figures of {finished}; nothing is trained" if finished else plan_text(study.settings)
    print(text, file=sys.stderr, flush=True)


def captions(path_of: Callable[[str], str]) -> dict[str, str]:
    """Return the captions of the report: of each figure under its name, of each table under NAME_table.

    A result without an entry in captions.yaml has its title as caption.

    path_of   Snakemake's path of a file, given relative to the rules
    """
    texts = yaml.safe_load(Path(path_of("../workflow/report/captions.yaml")).read_text(encoding="utf-8"))
    figures = {name: texts["figures"].get(name, figure.title) for name, figure in catalog.FIGURES.items()}
    tables = {f"{name}_table": texts["tables"].get(name, table.title) for name, table in catalog.TABLES.items()}
    return figures | tables


def make_report(study: StudyOfRules, quiet: Collection[Quietness] | None) -> None:
    """Make the self-contained report of a finished study unless it is newer than all results; print where to look.

    quiet   Snakemake's --quiet; nothing is printed if it has `all`
    """
    page = Path(study.folder) / "report.html"
    results = [Path(path) for path in (*study.tables, *study.figures, *study.decisions)]
    if not all(path.exists() for path in results):
        return  # only a part of the study was requested
    if not page.exists() or any(path.stat().st_mtime > page.stat().st_mtime for path in results):
        # A snakemake of its own: its first page shows the decisions, which did not exist when this one was parsed.
        command = [sys.executable, "-m", "snakemake", "--report", str(page), "--cores", "1", "--nolock"]
        command += ["--configfile", *study.origin["files"]]
        changes = [f"{key}={json.dumps(value)}" for key, value in study.origin["changes"].items()]
        command += ["--config", *changes] if changes else []
        log = Path(study.folder) / "logs/report.log"
        log.parent.mkdir(exist_ok=True)
        with open(log, "w") as output:
            done = subprocess.run(command, stdout=output, stderr=output)
        if done.returncode:
            raise WorkflowError(f"{page} could not be made, see {log}; the next snakemake tries again")
    if _is_silent(quiet):
        return
    lines = [f"\nreport   {page}", f"answers  {study.decisions[0]}"]
    lines += [f"figure   {path}" for path in study.headline]
    print(*lines, sep="\n", file=sys.stderr)


def report_failures(study: StudyOfRules, failed: Iterable, quiet: Collection[Quietness] | None) -> None:
    """Print which jobs failed, the last line of each one's log, and what the next call does.

    failed  Snakemake's jobs that failed in their last try, as its scheduler lists them. Its events and its log file
            also hold tries that were repeated, and lack jobs whose outputs were refused
    quiet   Snakemake's --quiet; nothing is printed if it has `all`
    """
    if _is_silent(quiet):
        return
    lines = sorted(line for job in failed for line in _failures(study, job))
    head = f"Failed jobs ({len(lines)}), each with the last line of its log:" if lines else "Stopped."
    print(
        f"\n{head}", *lines,
        "The same command goes on: finished files stay, and trainings resume from their checkpoints (see fvlm status).",
        sep="\n", file=sys.stderr, flush=True,
    )  # fmt: skip


def _failures(study: StudyOfRules, job) -> list[str]:
    """Return what a failed job reports; of a group only the members that have written something to their logs."""
    if not job.is_group():
        return [_failure(study, job)]
    members = [member for member in job if _last_line(member)]
    return [_failure(study, member) for member in members] or [f"  group {job.name}: nothing in the logs of its jobs"]


def _failure(study: StudyOfRules, job) -> str:
    line = _last_line(job) or "nothing in its log since this call began"
    text = f"  {' '.join([job.rule.name, *job.wildcards])}: {line}\n    {job.log[0]}"
    if job.rule.name == "train":
        checkpoint = newest_checkpoint(Path(study.folder) / "runs" / job.wildcards.run / "state")
        text += f"; newest checkpoint: step {checkpoint[0]}" if checkpoint else "; no checkpoint yet"
    return text


def _last_line(job) -> str:
    """Return the last line of a job's log; empty if the job died before it wrote, as when Slurm does not accept it."""
    log = Path(job.log[0])  # each rule has one
    is_new = log.exists() and log.stat().st_mtime > BEGUN
    return "".join(last_lines(log, 1)) if is_new else ""


def _is_silent(quiet: Collection[Quietness] | None) -> bool:
    return Quietness.ALL in (quiet or ())
