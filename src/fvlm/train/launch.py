"""Starting the processes of a training: torchrun starts those of one node, and srun starts a torchrun on each node.

SIGTERM and SIGUSR1, Slurm's warning before the time limit, are passed on to them.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

from fvlm.config.schema import Operation
from fvlm.errors import UserError
from fvlm.train.signals import PASSED_ON, REQUEUE

MAX_RESTARTS = 100  # of a Slurm job: without a limit, a job that is warned before its first step would never end
FIRST_PORT, PORTS = 20_000, 10_000  # the number of the Slurm job selects the port where its nodes meet
WAIT_S = 120  # after the first node has ended, srun ends the others


def launched() -> bool:
    """Return whether torchrun has started this process.

    Pods, notebooks and srun set RANK and WORLD_SIZE for purposes of their own; this variable is torchrun's alone.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ


def command_of(operation: Operation, training: list[str]) -> list[str]:
    """Return the command that starts all processes of a training; raises UserError for several nodes outside Slurm."""
    ranks, nodes = operation.ranks_per_node, operation.nodes
    torchrun = [sys.executable, "-m", "fvlm.train.torchrun", f"--nproc-per-node={ranks}"]
    if nodes == 1:
        return [*torchrun, "--standalone", *training]
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise UserError(
            f"operation.nodes is {nodes}, but this is no Slurm job; use the profile workflow/profiles/slurm, or start "
            "torchrun on each node (docs/cluster.md)"
        )
    meet = f"{socket.gethostname()}:{FIRST_PORT + int(job) % PORTS}"
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--wait={WAIT_S}",
            f"--cpus-per-task={operation.threads * ranks}"]  # fmt: skip
    return [*srun, *torchrun, f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={meet}",
            f"--rdzv-id={job}", *training]  # fmt: skip


def run_to_end(command: list[str]) -> int:
    """Run a command, pass the signals PASSED_ON to it, and return its exit status as a shell does.

    A command that such a signal has killed had no handler yet, so it had not begun: the status is REQUEUE. A terminal
    sends Ctrl-C to the command itself.
    """
    child = None
    received = []

    def pass_on(number: int, _frame: object) -> None:
        received.append(number)
        if child is not None:
            child.send_signal(number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.signal(signal.SIGINT, lambda *_: None)
    child = subprocess.Popen(command)
    for number in received:
        child.send_signal(number)
    status = child.wait()
    if -status in received:
        return REQUEUE
    return status if status >= 0 else 128 - status


def requeue_this_job(message: str) -> None:
    """Put this process's Slurm job back into the queue, and wait until Slurm ends it; outside Slurm do nothing.

    A job that is being cancelled or is over its limit, and so is no longer RUNNING, is not put back.

    message    what has happened, for the log
    """
    job, restarts = _slurm_job(), os.environ.get("SLURM_RESTART_COUNT", "0")
    if job is None or shutil.which("scontrol") is None or int(restarts) >= MAX_RESTARTS:
        return
    state = subprocess.run(["squeue", "--noheader", f"--jobs={job}", "--format=%T"], capture_output=True, text=True)
    if state.stdout.strip() != "RUNNING":
        return
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_DFL)
    # Slurm ends this process as soon as it has put the job back, but not before the message.
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    done = answer.returncode == 0
    ending = "is put back into the queue and will resume" if done else f"is not put back: {answer.stderr.strip()}"
    print(f"{message}; Slurm job {job} {ending}", file=sys.stderr, flush=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    if done:
        time.sleep(3600)


def _slurm_job() -> str | None:
    """The number of this Slurm job, of one task of a job array as ARRAY_TASK; None outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
