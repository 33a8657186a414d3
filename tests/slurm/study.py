"""A checkout that submits its studies to Slurm: the real profile with this machine's numbers in its SITE block."""

import csv
import json
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from tests.conftest import Workflow

PROFILE = "profile_of_test"
TIMING = ("samples_per_s", "mfu", "tflops", "memory_gb", "data_wait_s")
# The smoke study; an ablation by two processes, and the grid asks for a GPU.
STUDY = """study: smoke
results: results/{name}
based_on: smoke.yaml
ablations: {{A6: {{operation.ranks: 2}}}}
scaling: {{base: {{operation.gpus: 1}}}}
"""
# Trainings of 160 short steps, to be disturbed.
LONG = """study: {name}
results: results/{name}
based_on: smoke.yaml
only: {{ablations: [baseline]}}
seeds: {{baseline: [42, 43, 44], A6: null, B1: null}}
baseline: {{optim.batch_size: 1, train.samples: 160}}
"""


def write_profile(folder: Path, **extra) -> None:
    """Write the profile of the users with the limits of this machine and short waits."""
    profile = yaml.safe_load((folder / "workflow/profiles/slurm/config.yaml").read_text())
    kinds = "gpu_models='large:80 small:16'"
    profile["default-resources"] = ["slurm_partition=small", kinds, "mem_mb=700", "runtime=20"]
    for rule, resources in profile["set-resources"].items():
        resources |= {"mem_mb": 700 if rule in ("corpus", "shard", "index") else 1500, "runtime": 20}
        resources |= {"slurm_partition": "gpu"} if rule == "train" else {}
    profile |= {
        "cores": 2,
        "set-threads": ["corpus=2"],
        "resources": ["group_slots=2"],
        "latency-wait": 10,
        "slurm-status-command": "squeue",
        "slurm-init-seconds-before-status-checks": 4,
    }
    (folder / PROFILE).mkdir(exist_ok=True)
    (folder / PROFILE / "config.yaml").write_text(yaml.safe_dump(profile | extra))


def edit_profile(folder: Path, edit: Callable[[dict], object]) -> None:
    path = folder / PROFILE / "config.yaml"
    profile = yaml.safe_load(path.read_text())
    edit(profile)
    path.write_text(yaml.safe_dump(profile))


class SlurmWorkflow(Workflow):
    """Its snakemake submits jobs and writes its output to a file, which tests read while it runs."""

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        command = ["python", "-m", "snakemake", "--workflow-profile", PROFILE, *arguments]
        environment = {**self.environment, "PYTHONUNBUFFERED": "1"}
        with open(self.folder / "said.txt", "w") as said:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=said, stderr=said, start_new_session=True, **options
            )
        return self.process

    def end(self) -> None:
        """Kill the last snakemake if it is still there: after a failed test it would submit its jobs again."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def end_jobs(self) -> None:
        """Kill what jobs have left behind: the snakemake of a cancelled group outlives its job."""
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if Path(process.cwd()).is_relative_to(self.folder):
                    process.kill()

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def finish(self, process: subprocess.Popen, ok: bool = True, seconds: float = 1800) -> str:
        """Wait for the end of snakemake; return its output."""
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"snakemake is not at its end after {seconds:.0f} s: {self.said[-4000:]}") from None
        assert (process.returncode == 0) == ok, self.said[-6000:]
        return self.said

    def run(self, *arguments: str, ok: bool = True) -> str:
        return self.finish(self.start(*arguments), ok)

    def submitted(self) -> list[str]:
        """Numbers of the Slurm jobs that the last snakemake submitted."""
        return re.findall(r"SLURM jobid (\d+)", self.said)

    def trainings(self, run: str = "") -> list[psutil.Process]:
        """Processes that train in this checkout, or those of one run."""
        processes = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                if words[1:4] != ["-m", "fvlm", "train"] or process.cwd() != str(self.folder):
                    continue
                if run in ("", *words[4:]):
                    processes.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return processes


def steps_of(state: Path) -> int:
    """Return the step of the newest checkpoint."""
    return max((int(path.stem.split("_")[1]) for path in state.glob("step_*.pt")), default=0)


def was_sent(number: int, process: psutil.Process) -> bool:
    """Return whether a suspended process was sent a signal: the signal is pending, or the process has already ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return True
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def wait(condition: Callable[[], object], seconds: float = 600, what: str = "") -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain {what}"
        time.sleep(0.05)


def metrics(run: Path) -> list[dict]:
    """Rows of the metrics.csv of a run without the columns that depend on the clock."""
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


def summary(run: Path) -> dict:
    return json.loads((run / "run_summary.json").read_text())
