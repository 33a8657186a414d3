"""The processes of a training: several on one node are started by torchrun, several nodes by a torchrun on each, under
srun. SIGTERM and SIGUSR1, Slurm's warning before the time limit, are passed on.
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

MOST_RESTARTS = 100  # of a Slurm job: one that is warned before its first step would come back for ever
FIRST_PORT, PORTS = 20_000, 10_000  # the nodes of a training meet at one of them, by the number of their Slurm job
STRAGGLERS_S = 120  # that srun leaves the other nodes when one has ended


def launched() -> bool:
    """Has torchrun started this process?"""
    return "WORLD_SIZE" in os.environ


def command_of(operation: Operation, training: list[str]) -> list[str]:
    """What starts all processes of a training; raises UserError if several nodes are wanted outside Slurm."""
    ranks, nodes = operation.ranks_per_node, operation.nodes
    torchrun = [sys.executable, "-m", "fvlm.train.torchrun", f"--nproc-per-node={ranks}"]
    if nodes == 1:
        return [*torchrun, "--standalone", *training]
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise UserError(
            f"operation.nodes is {nodes}, but this is no Slurm job; use the profile workflow/profiles/slurm, or start "
            "torchrun on each node as docs/cluster.md says"
        )
    meet = f"{socket.gethostname()}:{FIRST_PORT + int(job) % PORTS}"
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--wait={STRAGGLERS_S}",
            f"--cpus-per-task={operation.threads * ranks}"]  # fmt: skip
    return [*srun, *torchrun, f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={meet}",
            f"--rdzv-id={job}", *training]  # fmt: skip


def run_to_end(command: list[str]) -> int:
    """Run a command and pass PASSED_ON to it; returns its exit status, as a shell counts it.

    One that such a signal ends before it listens had not begun, and is to be started again.
    Ctrl-C reaches the command by itself, which ends as it sees fit.
    """
    child = None
    heard = []

    def pass_on(number: int, _frame: object) -> None:
        heard.append(number)
        if child is not None:
            child.send_signal(number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.signal(signal.SIGINT, lambda *_: None)
    child = subprocess.Popen(command)
    for number in heard:
        child.send_signal(number)
    status = child.wait()
    if -status in heard:
        return REQUEUE
    return status if status >= 0 else 128 - status


def requeue_this_job(said: str) -> None:
    """Put the Slurm job that this is back into the queue and wait until that ends it; without one do nothing.

    said    what has happened, for the log

    Not if it is being cancelled or is over its limit: then its state is no longer RUNNING.
    """
    job, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    if job is None or shutil.which("scontrol") is None or int(restarts) >= MOST_RESTARTS:
        return
    asked = subprocess.run(["squeue", "--noheader", f"--jobs={job}", "--format=%T"], capture_output=True, text=True)
    if asked.stdout.strip() != "RUNNING":
        return
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_DFL)
    print(f"{said}; Slurm job {job} is put back into the queue, to go on from there", file=sys.stderr, flush=True)
    if subprocess.run(["scontrol", "requeue", job]).returncode == 0:
        time.sleep(3600)
