"""Checks of the machine: disk, file locks, shared memory, GPU, Slurm."""

import fcntl
import re
import shutil
import subprocess
from pathlib import Path

import torch

from fvlm.config.schema import Run, Study
from fvlm.costs.flops import parameters
from fvlm.costs.memory import GB
from fvlm.data.sources import sample_count
from fvlm.errors import UserError
from fvlm.study.check import NotChecked

FRAME, TEXT = 15_600, 2_000  # bytes of a frame's JPEG and a sample's text in a shard, measured in docs/data.md
SHARED = Path("/dev/shm")
SLURM_S = 30  # time limit of sinfo
NCCL_BYTES = 1 << 30  # upper estimate of the shared memory that NCCL uses


def disk(study: Study) -> str:
    """Check that the disk has room for the shards, checkpoints and weights that are still to be written."""
    folder = Path(study.results).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    shards, runs = shard_bytes(study), training_bytes(study)
    message = f"{shards / GB:,.1f} GB of shards and {runs / GB:,.1f} GB of checkpoints and weights to be written, "
    message += f"{free / GB:,.1f} GB free in {study.results}"
    if shards + runs > free:
        raise UserError(f"{message}; free some space, or set `results` to a folder on a larger disk")
    return message


def shard_bytes(study: Study) -> float:
    """Return the bytes of the shards that the workflow has not made yet."""
    total = 0.0
    for name in study.used_sources:
        source = study.sources[name]
        if source.reader == "shards" or (Path(study.results) / "index" / f"{name}.npz").exists():
            continue
        total += sample_count(source, study.results) * (source.frames * FRAME + TEXT)
    return total


def training_bytes(study: Study) -> float:
    """Return the bytes of the unfinished runs: final files of each, and temporary files of the largest."""
    final, temporary = 0.0, 0.0
    for run in study.runs.values():
        if (Path(study.results) / "runs" / run.name / "run_summary.json").exists():
            continue
        weights = 4.0 * parameters(run.model)["total"]
        averages = 1 + (run.optim.ema is not None)
        final += (3 + averages) * weights  # best twice, final, and the last checkpoint without moments
        temporary = max(temporary, 2 * checkpoint_bytes(run) + weights)  # two with moments, and one more best
    return final + temporary


def checkpoint_bytes(run: Run) -> int:
    """Return the bytes of weights, two moments and perhaps an average of the trained parts, all float32."""
    counts = parameters(run.model)
    trained = sum(counts[part] for part in ("connector", "dino", "llm") if part not in run.optim.freeze)
    return 4 * counts["total"] + (8 + 4 * (run.optim.ema is not None)) * trained


def file_lock(folder: Path) -> str:
    """Check that file locks work. Without them two trainings could write into one run."""
    path = folder / "lock"
    with open(path, "w") as one, open(path) as other:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "a lock keeps a second process out"
    raise UserError(
        f"the file system of {folder.parent} accepts locks but does not enforce them, so two processes could train "
        "one run; mount it with locks, or set `results` to another file system"
    )


def shared_memory(study: Study) -> str:
    """Check shared memory, which only NCCL uses, between the GPUs of a node."""
    if all(run.operation.gpus < 2 for run in study.runs.values()):
        raise NotChecked("not needed: only runs with several GPUs on a node use shared memory, and there is none")
    if not SHARED.is_dir():
        raise NotChecked(f"no {SHARED} on this system")
    free = shutil.disk_usage(SHARED).free
    if free < NCCL_BYTES:
        raise UserError(
            f"{SHARED} has {free / GB:.2f} GB free, NCCL may need {NCCL_BYTES / GB:.0f} GB between the GPUs of a node; "
            "enlarge it (docker: --shm-size=2g), or set NCCL_SHM_DISABLE=1"
        )
    return f"{free / GB:.1f} GB free in {SHARED}, for NCCL"


def gpu(study: Study) -> str:
    """Check that this machine has the GPUs that the runs need, and that they are the GPU of the study."""
    needed = max((run.operation.gpus for run in study.runs.values()), default=0)
    if not needed:
        raise NotChecked("no run needs a GPU")
    if not torch.cuda.is_available():
        raise NotChecked(f"no GPU here; runs need {needed}")
    properties, count = torch.cuda.get_device_properties(0), torch.cuda.device_count()
    hardware = f"{count} x {properties.name}, {properties.total_memory / GB:.1f} GB"
    if count < needed:
        raise UserError(f"{hardware}, but runs need {needed}; lower operation.gpus")
    if study.gpu is not None and properties.total_memory / GB < 0.95 * study.gpu.memory_gb:
        raise UserError(f"{hardware}, but the study has {study.gpu.memory_gb:g} GB; correct gpu.memory_gb")
    if study.gpu is not None and not re.search(rf"\b{re.escape(study.gpu.name)}\b", properties.name):
        raise UserError(f"{hardware}, but the study has {study.gpu.name}; correct gpu.name")
    if not torch.cuda.is_bf16_supported() and any(r.train.precision == "bfloat16" for r in study.runs.values()):
        raise UserError(f"{hardware}, which does not support bfloat16; set train.precision to float32")
    return hardware


def slurm() -> str:
    """Check whether Slurm answers. If not, this is no problem, since a study also runs without it."""
    if shutil.which("sinfo") is None:
        raise NotChecked("no Slurm here")
    try:
        done = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=SLURM_S)
    except subprocess.TimeoutExpired as error:
        raise NotChecked(f"Slurm does not answer within {SLURM_S} s; check that slurmctld is running") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise NotChecked(f"Slurm does not answer: {reason}")
    return f"Slurm answers, {len(done.stdout.splitlines())} lines of partitions"
