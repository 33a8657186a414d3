"""What the plugin for Slurm does not handle: jobs of an earlier snakemake in the queue, and stages that go first.

A snakemake that was killed leaves its jobs alive. The next one must neither submit them again nor repeat what they have
finished. Only the process that submits imports this module; it extends a class of one version of the plugin.
"""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import ClassVar

from snakemake_executor_plugin_slurm import Executor
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from fvlm.snakemake.module import is_training

SECONDS_BETWEEN_QUERIES = 5
NICE = 100  # points that Slurm subtracts from a job's priority


def follow_earlier_jobs() -> None:
    """Replace the plugin's executor by one that follows the jobs that are in the queue now."""
    # The jobs of a group depend on what is left to do, so a living group cannot be followed.
    wait_while(
        lambda comment, number: comment.startswith("rule_decode_"),
        "Slurm jobs {} of an earlier snakemake are still decoding; waiting until they end (scancel them to start them "
        "anew)",
    )
    FollowingExecutor.living = living_jobs()
    ExecutorPluginRegistry().get_plugin("slurm").executor = FollowingExecutor


def job_name() -> str:
    """The name of all Slurm jobs of this working directory. The plugin would give each snakemake's jobs another one."""
    return f"fvlm-{hashlib.sha256(os.getcwd().encode()).hexdigest()[:16]}"


def living_jobs() -> dict[str, tuple[str, str]]:
    """Jobs of this working directory in Slurm's queue: the plugin's comment -> (number, state)."""
    query = ["squeue", "--noheader", f"--name={job_name()}", "--format=%A|%T|%k"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return {}  # no Slurm here
    if answer.returncode:
        return {}  # no controller answers, so nothing can be submitted either
    rows = [line.split("|", 2) for line in answer.stdout.splitlines()]
    return {comment: (number, state) for number, state, comment in rows}


def wait_while(selected: Callable[[str, str], bool], message: str) -> None:
    """Wait while `selected(comment, number)` holds for a living job; the message with their numbers is printed once."""
    printed = False
    while numbers := [number for comment, (number, _) in living_jobs().items() if selected(comment, number)]:
        if not printed:
            print(message.format(", ".join(sorted(numbers))), file=sys.stderr, flush=True)
        printed = True
        time.sleep(SECONDS_BETWEEN_QUERIES)


def go_behind_stages(job) -> None:
    """Let Slurm start the stages before a training that is none.

    Without this, a stage waits for all trainings in the queue, since it is submitted when its parent has finished.
    """
    extra = job.resources.get("slurm_extra") or ""
    if is_training(job) and not job.priority and "--nice" not in extra:
        job.resources.slurm_extra = f"{extra} --nice={NICE}".strip()


class FollowingExecutor(Executor):
    """The plugin's executor, which also follows the jobs of an earlier snakemake."""

    living: ClassVar[dict[str, tuple[str, str]]] = {}  # jobs in the queue that no job of this snakemake has met yet

    def __post_init__(self, *arguments, **options):
        super().__post_init__(*arguments, **options)
        self.run_uuid = job_name()

    def run_jobs(self, jobs):
        new = [job for job in jobs if not self.follow(job)]
        for job in new:
            go_behind_stages(job)
            for member in job if job.is_group() else [job]:
                self.record(member)
        super().run_jobs(new)

    def follow(self, job) -> bool:
        """Return whether an earlier snakemake's job makes or has just made the files; it is not submitted again."""
        wildcards = "_".join(job.wildcards).replace(os.sep, "_") if not job.is_group() else ""
        comment = f"rule_{job.name}" + (f"_wildcards_{wildcards}" if wildcards else "")
        number, _ = self.living.pop(comment, (None, None))
        if number is None:
            return False
        if self.is_outdated(job):
            self.logger.info(f"Slurm job {number} was submitted with older parameters or inputs; it is cancelled.")
            subprocess.run(["scancel", number])
            wait_while(lambda _, other: other == number, "waiting until Slurm job {} has ended")
            return False
        if comment in living_jobs():
            self.logger.info(f"Slurm job {number} of an earlier snakemake is still there; it is followed.")
            self.run_job_pre(job)
            log = self.slurm_logdir / f"rule_{job.name}" / wildcards / f"{number}.log"
            self.report_job_submission(SubmittedJobInfo(job, external_jobid=number, aux={"slurm_logfile": log}))
            return True
        if self.is_complete(job):
            self.logger.info(f"Slurm job {number} of an earlier snakemake has finished.")
            self.report_job_success(SubmittedJobInfo(job))
            return True
        return False

    def is_outdated(self, job) -> bool:
        """Return whether a living job was submitted with other parameters, or before its inputs are made again."""
        reason = self.dag.reason(job)
        return bool(
            self.workflow.persistence.params_changed(job)
            or reason.updated_input
            or reason.updated_input_run
            or reason.forced
        )

    def is_complete(self, job) -> bool:
        """Return whether all outputs exist and none is marked as incomplete."""
        exist = all(os.path.exists(path) for path in job.output)
        return exist and not self.workflow.async_run(self.workflow.persistence.incomplete(job))

    def record(self, job) -> None:
        """Note the parameters and inputs with which a job is submitted.

        Snakemake does so when it sees the job end. If it does not live that long, a later change of parameters would go
        unnoticed. The files stay marked as incomplete until the job itself ends that.
        """
        persistence = self.workflow.persistence
        persistence.started(job)
        persistence._unmark_incomplete = lambda key: None
        try:
            self.workflow.async_run(persistence.finished(job))
        finally:
            del persistence._unmark_incomplete
