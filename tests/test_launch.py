"""Starting the processes of a training: signals reach them, and their exit status is returned."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from fvlm.config.schema import Operation
from fvlm.errors import Stopped, UserError
from fvlm.train.launch import command_of, launched
from fvlm.train.ranks import Ranks
from fvlm.train.signals import REQUEUE

TRAINING = ["-m", "fvlm", "train", "A6"]
# Ranks that stop together, as a training does, once any of them has received a signal.
RANK = """
    import signal, sys, time, torch, torch.distributed as dist
    received = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, frame: received.append(number))
    dist.init_process_group("gloo")
    print("ready", flush=True)
    while True:
        total = torch.tensor([float(len(received))])
        dist.all_reduce(total)
        if total:
            time.sleep(float(sys.argv[1]) if sys.argv[1:] else 0)
            print("saved", dist.get_rank(), flush=True)
            dist.destroy_process_group()
            sys.exit(130 if signal.SIGINT in received else 75)
        time.sleep(0.02)
"""


def operation(**changes) -> Operation:
    fields = {"micro_frames": 1, "micro_tokens": 1, "checkpoint_steps": 1, "checkpoint_minutes": None, "gpus": 0,
              "attention_videos": 0, "loader_workers": 0, "threads": 3, "log_seconds": 1, "wandb": None,
              "tensorboard": False}  # fmt: skip
    return Operation(**fields | changes)


@pytest.mark.parametrize("changes", [{"gpus": 4}, {"ranks": 4}])
def test_several_processes_are_started_by_torchrun(changes):
    command = command_of(operation(**changes), TRAINING)
    assert command[1:] == ["-m", "fvlm.train.torchrun", "--nproc-per-node=4", "--standalone", *TRAINING]


def test_several_nodes_are_started_by_srun(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12345")
    command = command_of(operation(gpus=4, nodes=2), TRAINING)
    assert command[0] == "srun" and {"--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=12"} <= set(command)
    assert {"--nnodes=2", "--nproc-per-node=4", "--rdzv-id=12345"} <= set(command)
    assert command[-4:] == TRAINING


def test_several_nodes_need_slurm(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match=r"operation\.nodes is 2"):
        command_of(operation(nodes=2), TRAINING)


def launch(folder: Path, ranks: int, seconds_to_save: float = 0.0) -> str:
    """Write the rank's program; return a shell command that runs `run_to_end` of `ranks` ranks."""
    (folder / "rank.py").write_text(textwrap.dedent(RANK))
    command = [sys.executable, "-m", "fvlm.train.torchrun", f"--nproc-per-node={ranks}", "--standalone", "rank.py"]
    command.append(str(seconds_to_save))
    code = f"import sys; from fvlm.train.launch import run_to_end; sys.exit(run_to_end({command!r}))"
    return f'{sys.executable} -c "{code}"'


def start(folder: Path, line: str) -> subprocess.Popen:
    """Run a shell command in a process group of its own, with its output in `folder`/log."""
    return subprocess.Popen(["bash", "-c", line], cwd=folder, start_new_session=True)


def wait_until_ready(folder: Path, process: subprocess.Popen, ranks: int = 2) -> None:
    log, end = folder / "log", time.monotonic() + 120
    while not log.exists() or log.read_text().count("ready") < ranks:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 2)])
def test_a_signal_reaches_the_training_through_shell_and_tee(number, ranks, tmp_path):
    """The shell line of the Snakemake rule: all its processes get the signal, and its status is the training's."""
    line = f"set -euo pipefail; trap '' TERM USR1; {launch(tmp_path, ranks)} 2>&1 | tee -ia log"
    shell = start(tmp_path, f"{line} > /dev/null")
    wait_until_ready(tmp_path, shell, ranks)
    os.killpg(shell.pid, number)
    assert shell.wait(60) == REQUEUE
    assert (tmp_path / "log").read_text().count("saved") == ranks


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.5])
def test_a_signal_before_there_are_ranks_requests_another_start(tmp_path, seconds):
    """The signal comes `seconds` after torchrun has begun to start, which takes seconds."""
    process = start(tmp_path, f"exec {launch(tmp_path, 2)} > log 2>&1")
    while not any("torchrun" in " ".join(child.cmdline()) for child in psutil.Process(process.pid).children()):
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == REQUEUE, (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_several_signals_leave_no_rank_behind(tmp_path):
    """While the ranks save, signals come from the user, the scheduler, srun and the process group."""
    process = start(tmp_path, f"exec {launch(tmp_path, 2, 2.5)} > log 2>&1")
    wait_until_ready(tmp_path, process)
    for _ in range(4):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.4)
    assert process.wait(60) == REQUEUE
    assert (tmp_path / "log").read_text().count("saved") == 2


def test_ctrl_c_ends_all_without_output_of_torchrun(tmp_path):
    process = start(tmp_path, f"exec {launch(tmp_path, 2, 0.5)} > log 2>&1")
    wait_until_ready(tmp_path, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    output = (tmp_path / "log").read_text()
    assert output.count("saved") == 2 and "Traceback" not in output and "torch" not in output, output


def test_no_library_takes_a_signal_for_an_error_of_its_own():
    """Any other exception within a library is reported as an unreadable file."""
    assert not issubclass(Stopped, Exception)


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "2"}, {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}])
def test_variables_of_others_make_no_ranks(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not launched() and Ranks.of_environment() == Ranks()


@pytest.mark.parametrize(
    ("variables", "scontrol", "status", "message"),
    [
        ({"SLURM_JOB_ID": "7"}, "kill -TERM $PPID", -15, "saved; Slurm job 7 is put back into the queue"),
        ({"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}, "kill -TERM $PPID", -15,
         "saved; Slurm job 5_2 is put back into the queue"),
        ({"SLURM_JOB_ID": "7"}, "echo denied >&2; exit 1", 0, "saved; Slurm job 7 is not put back: denied"),
    ],
    ids=["job", "task of an array", "denied"],
)  # fmt: skip
def test_a_slurm_job_says_whether_it_is_put_back(tmp_path, variables, scontrol, status, message):
    commands = {"squeue": "echo RUNNING", "scontrol": f'echo "$@" > {tmp_path}/calls; {scontrol}'}
    for name, line in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    code = "from fvlm.train.launch import requeue_this_job; requeue_this_job('saved')"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == status and message in done.stderr, done
    assert (tmp_path / "calls").read_text().split() == ["requeue", message.split()[3]]
