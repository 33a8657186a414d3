"""How a training's processes are started, and what becomes of signals and of their exit status."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from transformers import Dinov2Config, Dinov2Model

from fvlm.config.schema import Operation
from fvlm.data.shards import text
from fvlm.errors import Stopped, UserError
from fvlm.model.build import ENCODER_FIELDS, load_pretrained
from fvlm.train.launch import command_of
from fvlm.train.signals import REQUEUE, StopRequest

TRAINING = ["-m", "fvlm", "train", "A6"]
# Two ranks that leave together, as a training does, once any of them has heard a signal.
RANK = """
    import signal, sys, time, torch, torch.distributed as dist
    heard = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, frame: heard.append(number))
    dist.init_process_group("gloo")
    print("ready", flush=True)
    while True:
        any_heard = torch.tensor([float(len(heard))])
        dist.all_reduce(any_heard)
        if any_heard:
            time.sleep(float(sys.argv[1]) if sys.argv[1:] else 0)
            print("saved", dist.get_rank(), flush=True)
            dist.destroy_process_group()
            sys.exit(130 if signal.SIGINT in heard else 75)
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
    assert command == [
        sys.executable, "-m", "fvlm.train.torchrun", "--nproc-per-node=4", "--standalone", *TRAINING
    ]  # fmt: skip


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_reaches_the_training_through_shell_and_tee(number, ranks, tmp_path):
    """The shell line of the rule: everything in it gets the signal, and its status is the training's."""
    code = textwrap.dedent(RANK)
    if ranks == 1:
        code = code.replace("import signal", "import os, signal", 1).replace(
            'dist.init_process_group("gloo")',
            'os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")\n'
            'dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)',
        )
    (tmp_path / "rank.py").write_text(code)
    starter = [sys.executable, "rank.py"]
    if ranks == 2:
        starter = [sys.executable, "-m", "fvlm.train.torchrun", "--nproc-per-node=2", "--standalone", "rank.py"]
    launch = f"import sys; from fvlm.train.launch import run_to_end; sys.exit(run_to_end({starter!r}))"
    line = f"set -euo pipefail; trap '' TERM USR1; {sys.executable} -c \"{launch}\" 2>&1 | tee -i log"
    shell = subprocess.Popen(["bash", "-c", line], cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL)
    log = tmp_path / "log"
    end = time.monotonic() + 120
    while not log.exists() or log.read_text().count("ready") < ranks:
        assert time.monotonic() < end and shell.poll() is None
        time.sleep(0.05)
    os.killpg(shell.pid, number)
    assert shell.wait(60) == REQUEUE
    assert log.read_text().count("saved") == ranks


def starter(folder: Path, seconds_to_save: float, **options) -> subprocess.Popen:
    """`run_to_end` of two ranks, which say what they do in `folder`/log."""
    (folder / "rank.py").write_text(textwrap.dedent(RANK))
    command = [sys.executable, "-m", "fvlm.train.torchrun", "--nproc-per-node=2", "--standalone", "rank.py"]
    command.append(str(seconds_to_save))
    launch = f"import sys; from fvlm.train.launch import run_to_end; sys.exit(run_to_end({command!r}))"
    with open(folder / "log", "w") as log:
        return subprocess.Popen([sys.executable, "-c", launch], cwd=folder, stdout=log, stderr=log, **options)


def wait_until_ready(folder: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while (folder / "log").read_text().count("ready") < 2:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.5])
def test_a_signal_before_there_are_ranks_asks_for_another_start(tmp_path, seconds):
    """So long after torchrun has begun to start, which takes it seconds."""
    process = starter(tmp_path, 0)
    while not (children := psutil.Process(process.pid).children()) or "torchrun" not in " ".join(children[0].cmdline()):
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == REQUEUE, (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_many_signals_leave_no_rank_behind(tmp_path):
    """From the user, the scheduler, srun and the process group, while the ranks save."""
    process = starter(tmp_path, 2.5)
    wait_until_ready(tmp_path, process)
    for _ in range(4):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.4)
    assert process.wait(60) == REQUEUE
    assert (tmp_path / "log").read_text().count("saved") == 2


def test_ctrl_c_ends_all_without_a_word_of_torchrun_s(tmp_path):
    process = starter(tmp_path, 0.5, start_new_session=True)
    wait_until_ready(tmp_path, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    said = (tmp_path / "log").read_text()
    assert said.count("saved") == 2 and "Traceback" not in said and "torch" not in said, said


def test_a_signal_while_something_loads_is_no_mistake_of_what_loads(tmp_path, monkeypatch):
    """It comes in the middle of a library's code, whose every other exception is told as a file that cannot be read."""

    def interrupted(*_arguments, **_options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(text, "Tokenizer", SimpleNamespace(from_file=interrupted))
    monkeypatch.setattr(Dinov2Config, "get_config_dict", interrupted)
    loads = (
        lambda: text.load_tokenizer(tmp_path),
        lambda: load_pretrained(Dinov2Model, str(tmp_path), Dinov2Config(), "encoder", ENCODER_FIELDS),
    )
    for load in loads:
        with StopRequest().listening(), pytest.raises(Stopped) as stopped:
            load()
        assert stopped.value.status == REQUEUE
