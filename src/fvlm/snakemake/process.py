"""This snakemake process: locks that a killed one left, signals, and what the command line requests."""

import fcntl
import importlib.util
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

from snakemake.scheduling.job_scheduler import JobScheduler

from fvlm.snakemake.module import is_whole

SLURM_PLUGIN = "snakemake_executor_plugin_slurm"


def prepare_process(workflow, announce: Callable[[], None]) -> None:
    """Make this process ready to run jobs, or to be one.

    announce   prints the plan; a dry run does so here, since Snakemake calls no onstart for it
    """
    if not workflow.is_main_process:  # Snakemake started it for a job
        # Slurm warns all processes of a job before its time limit. Those around a training must not end before it.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    elif not workflow.output_settings.dryrun:
        _prepare_to_run()
    elif is_whole(workflow):
        announce()


@cache
def _prepare_to_run() -> None:
    """Once per process, also if several modules are this workflow."""
    drop_stale_locks()
    answer_signals_in_a_thread()
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


def drop_stale_locks(folder: Path = Path(".snakemake")) -> bool:
    """Remove the lock files of a killed snakemake, and hold a lock that ends with this process.

    returns   False, with nothing removed, if another snakemake is at work here
    """
    folder.mkdir(exist_ok=True)
    alive = os.open(folder / "alive", os.O_WRONLY | os.O_CREAT)  # stays open until this process ends
    try:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(alive)
        return False
    for lock in folder.glob("locks/*.lock"):
        lock.unlink()
    return True


def answer_signals_in_a_thread() -> None:
    """Let Snakemake answer SIGTERM in another thread.

    The answer takes a lock. If the interrupted main thread holds that lock, since it finishes a job, it would wait for
    itself for ever.
    """
    exit_gracefully = JobScheduler.exit_gracefully

    def in_a_thread(self, *args) -> None:
        threading.Thread(target=exit_gracefully, args=(self, *args), daemon=True).start()

    JobScheduler.exit_gracefully = in_a_thread
