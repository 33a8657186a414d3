# What Snakemake's Slurm plugin leaves out: a snakemake that was killed leaves jobs alive, and the next one must neither
# submit them again nor do again what they have finished. Only the process that submits includes this file.

import hashlib
import subprocess
import time

from snakemake_executor_plugin_slurm import Executor
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

# The plugin gives all jobs of one snakemake a name of their own and looks for them by it. This name stays the same.
JOB_NAME = f"fvlm-{hashlib.sha256(os.getcwd().encode()).hexdigest()[:16]}"


def living_jobs():
    """Jobs of this working directory that are in Slurm's queue: what the plugin calls them -> (number, state)."""
    query = ["squeue", "--noheader", f"--name={JOB_NAME}", "--format=%A|%T|%k"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return {}  # no Slurm here
    if asked.returncode:
        return {}  # and none that answers: nothing can be submitted either
    rows = [line.split("|", 2) for line in asked.stdout.splitlines()]
    return {about: (number, state) for number, state, about in rows}


def wait_for(wanted, sentence):
    """Wait until no living job is `wanted(about, number)`, with a sentence to whoever waits."""
    said = False
    while found := [n for about, (n, _) in living_jobs().items() if wanted(about, n)]:
        if not said:
            print(
                sentence.format(", ".join(sorted(found))), file=sys.stderr, flush=True
            )
        said = True
        time.sleep(5)


class FollowingExecutor(Executor):
    """The plugin, which also follows the jobs of an earlier snakemake."""

    def __post_init__(self, *arguments, **options):
        super().__post_init__(*arguments, **options)
        self.run_uuid = JOB_NAME

    def run_jobs(self, jobs):
        new = [job for job in jobs if not self.follow(job)]
        for job in new:
            for member in job if job.is_group() else [job]:
                self.record(member)
        super().run_jobs(new)

    def follow(self, job):
        """True if an earlier snakemake's job makes or has just made this one's files; it is not submitted again."""
        wildcards = (
            "_".join(job.wildcards).replace(os.sep, "_") if not job.is_group() else ""
        )
        about = f"rule_{job.name}" + (f"_wildcards_{wildcards}" if wildcards else "")
        number, _ = LIVING.pop(about, (None, None))
        if number is None:
            return False
        if self.is_outdated(job):
            self.logger.info(
                f"Slurm job {number} works on what has changed since; it is cancelled."
            )
            subprocess.run(["scancel", number])
            wait_for(lambda _, n: n == number, "waiting until Slurm job {} has ended")
            return False
        if about in living_jobs():
            self.logger.info(
                f"Slurm job {number} of an earlier snakemake is still there; it is followed."
            )
            self.run_job_pre(job)
            log = self.slurm_logdir / f"rule_{job.name}" / wildcards / f"{number}.log"
            self.report_job_submission(
                SubmittedJobInfo(job, external_jobid=number, aux={"slurm_logfile": log})
            )
            return True
        if all(
            os.path.exists(path) for path in job.output
        ) and not self.workflow.async_run(self.workflow.persistence.incomplete(job)):
            self.logger.info(
                f"Slurm job {number} of an earlier snakemake has finished."
            )
            self.report_job_success(SubmittedJobInfo(job))
            return True
        return False

    def is_outdated(self, job):
        """Whether a living job was submitted for other parameters, or before its inputs are made again."""
        reason = self.dag.reason(job)
        return bool(
            self.workflow.persistence.params_changed(job)
            or reason.updated_input
            or reason.updated_input_run
            or reason.forced
        )

    def record(self, job):
        """Note with which parameters and inputs a job is submitted.

        Snakemake does so when it sees the job end; if it does not live that long, a later change of parameters would
        go unnoticed. The files stay marked as incomplete, which the job itself ends.
        """
        persistence = self.workflow.persistence
        persistence.started(job)
        persistence._unmark_incomplete = lambda key: None
        try:
            self.workflow.async_run(persistence.finished(job))
        finally:
            del persistence._unmark_incomplete


ExecutorPluginRegistry().get_plugin("slurm").executor = FollowingExecutor

# What is in a group depends on what is left to do, so that a living group cannot be followed.
wait_for(
    lambda about, _: about.startswith("rule_decode_"),
    "Slurm jobs {} of an earlier snakemake are still decoding; waiting until they end (scancel them to start them anew)",
)
LIVING = living_jobs()
