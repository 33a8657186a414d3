"""`fvlm launch RUN`: `fvlm train RUN` in as many processes as the run's `operation` asks for.

One process is started as it is, several on one node by torchrun, several nodes by a torchrun on each, under srun.
SIGTERM and SIGUSR1, Slurm's warning before the time limit, are passed on; the training then saves itself and exits with
status 75. In a Slurm job that is running well the job is then put back into the queue, to go on from the checkpoint.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

from fvlm.config import add_study_arguments, study_of
from fvlm.errors import UserError
from fvlm.schema import Operation
from fvlm.train.signals import REQUEUE

MOST_RESTARTS = 100  # of a Slurm job: one that is warned before its first step would come back for ever
FIRST_PORT, PORTS = 20_000, 10_000  # the nodes of a training meet at one of them, by the number of their Slurm job
STRAGGLERS_S = 120  # that srun leaves the other nodes when one has ended
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)


def add_arguments(parser) -> None:
    parser.add_argument("run", help="name of the run, for example stage1, A6 or 135M-C1-F")
    add_study_arguments(parser)
    parser.add_argument("--digest", help="stop unless the run's configuration has this digest")


def main(args) -> int:
    study = study_of(args)
    if args.run not in study.runs:
        raise UserError(f"no run {args.run!r} in study {study.study!r}; `fvlm plan` lists them")
    training = ["-m", "fvlm", "train", args.run]
    training += ["--study", *args.study] if args.study else []
    training += ["--digest", args.digest] if args.digest else []
    command = command_of(study.runs[args.run].operation, training)
    if command[1:] == training and "SLURM_JOB_ID" not in os.environ:
        os.execv(command[0], command)  # nothing is left to do here
    status = run_to_end(command)
    if status == REQUEUE:
        requeue_this_job()
    return status


def command_of(operation: Operation, training: list[str]) -> list[str]:
    """What starts all processes of a training; raises UserError if several nodes are wanted outside Slurm."""
    ranks, nodes = operation.ranks_per_node, operation.nodes
    if ranks * nodes == 1:
        return [sys.executable, *training]
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
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--wait={STRAGGLERS_S}"]
    srun += [f"--cpus-per-task={operation.threads * ranks}", "--cpu-bind=none"]
    return [*srun, *torchrun, f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={meet}",
            f"--rdzv-id={job}", *training]  # fmt: skip


def run_to_end(command: list[str]) -> int:
    """Run a command and pass PASSED_ON to it; returns its exit status, as a shell counts it.

    Ctrl-C reaches the command by itself, which ends as it sees fit.
    """
    child = None
    early = []

    def pass_on(number: int, _frame: object) -> None:
        early.append(number) if child is None else child.send_signal(number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.signal(signal.SIGINT, lambda *_: None)
    child = subprocess.Popen(command)
    for number in early:
        child.send_signal(number)
    status = child.wait()
    return status if status >= 0 else 128 - status


def requeue_this_job() -> None:
    """Put the Slurm job that this is back into the queue and wait until that ends it; without one do nothing.

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
    print(f"Slurm job {job} is put back into the queue, to go on from the checkpoint", file=sys.stderr, flush=True)
    if subprocess.run(["scontrol", "requeue", job]).returncode == 0:
        time.sleep(3600)
