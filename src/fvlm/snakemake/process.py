"""This snakemake process: locks that a killed one left, signals, and what the command line requests."""

import fcntl
import importlib.util
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

from snakemake import logging
from snakemake.scheduling.job_scheduler import JobScheduler

from fvlm.files import last_lines
from fvlm.snakemake.module import is_whole

SLURM_PLUGIN = "snakemake_executor_plugin_slurm"
ALIVE = Path(".snakemake/alive")  # a file that a snakemake at work in this directory holds locked
SHOWN = 20  # lines of the log of a failed job


def prepare_process(workflow, announce: Callable[[], None]) -> None:
    """Make this process ready to run jobs, or to be one.

    announce   prints the plan; a dry run does so here, since Snakemake calls no onstart for it
    """
    if not workflow.is_main_process:  # Snakemake started it for a job
        # Slurm warns all processes of a job before its time limit. Those around a training must not end before it.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    elif not workflow.output_settings.dryrun:
        _prepare_to_work()
    elif is_whole(workflow):
        announce()


@cache  # once, also where a workflow has several modules of this one
def _prepare_to_work() -> None:
    if is_alone():
        drop_stale_locks()
    answer_signals_in_a_thread()
    logging.show_logs = ends_of  # for `show-failed-logs`; Snakemake would print all of a training's log
    if importlib.util.find_spec(SLURM_PLUGIN):
        from fvlm.snakemake.slurm import follow_earlier_jobs

        follow_earlier_jobs()


def is_target(name: str, arguments: list[str] | None = None) -> bool:
    """Return whether a rule is a target on the command line; the process of a job has `name:` there.

    A module's rule has a longer name, such as `fvlm_plan`.
    Snakemake's own objects hold the targets only after the Snakefile is parsed.
    """
    words = sys.argv[1:] if arguments is None else arguments
    return any(re.fullmatch(rf"(\w+_)?{name}(:.*)?", word) for word in words)


def requests_report(arguments: list[str] | None = None, after_run: bool = True) -> bool:
    """Return whether the command line has --report, or (with `after_run`) --report-after-run."""
    words = [word.partition("=")[0] for word in (sys.argv[1:] if arguments is None else arguments)]
    return (after_run or "--report-after-run" not in words) and bool({"--report", "--report-after-run"} & set(words))


@cache
def is_alone(file: Path = ALIVE) -> bool:
    """Return whether no other snakemake holds this file, and hold it until this process ends."""
    file.parent.mkdir(parents=True, exist_ok=True)
    alive = os.open(file, os.O_WRONLY | os.O_CREAT)  # stays open until this process ends
    try:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(alive)
        return False
    except OSError:  # a file system without locks
        return True
    return True


def drop_stale_locks(folder: Path = ALIVE.parent) -> None:
    """Remove the lock files that a killed snakemake left; only for a process that is alone."""
    for lock in folder.glob("locks/*.lock"):
        lock.unlink()


def answer_signals_in_a_thread() -> None:
    """Let Snakemake answer SIGTERM in another thread.

    The answer takes a lock. If the interrupted main thread holds that lock, since it finishes a job, it would wait for
    itself for ever.
    """
    exit_gracefully = JobScheduler.exit_gracefully

    def in_a_thread(self, *args) -> None:
        threading.Thread(target=exit_gracefully, args=(self, *args), daemon=True).start()

    JobScheduler.exit_gracefully = in_a_thread


def ends_of(logs: Iterable[str]) -> Iterator[str]:
    """Yield the last lines of each log of a failed job, as Snakemake prints them."""
    for log in logs:
        lines = last_lines(log, SHOWN)
        yield f"Last lines of {log}:" if lines else f"Log {log} is empty or does not exist."
        yield from (f"    {line}" for line in lines)
