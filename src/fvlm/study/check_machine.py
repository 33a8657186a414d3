"""Checks of the machine: disk, file locks, shared memory, GPU, Slurm."""

import fcntl
import os
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
SLURM_S = 30  # that sinfo may take
NCCL_BYTES = 1 << 30  # what NCCL may want of it, generously


def disk(study: Study) -> str:
    """Room for what is still to be written: shards, checkpoints, weights."""
    folder = Path(study.results).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    shards, runs = shard_bytes(study), training_bytes(study)
    said = f"{shards / GB:,.1f} GB of shards and {runs / GB:,.1f} GB of checkpoints and weights to be written, "
    said += f"{free / GB:,.1f} GB free in {study.results}"
    if shards + runs > free:
        raise UserError(f"{said}; make room, or give `results` a folder on a larger disk")
    return said


def shard_bytes(study: Study) -> float:
    """Of the shards that the workflow has yet to make."""
    total = 0.0
    for name in study.used_sources:
        source = study.sources[name]
        if source.reader == "shards" or (Path(study.results) / "index" / f"{name}.npz").exists():
            continue
        total += sample_count(source, study.results) * (source.frames * FRAME + TEXT)
    return total


def training_bytes(study: Study) -> float:
    """Of the runs that are not finished: of each what stays, and of the largest what it needs on its way."""
    stays, most = 0.0, 0.0
    for run in study.runs.values():
        if (Path(study.results) / "runs" / run.name / "run_summary.json").exists():
            continue
        whole = 4.0 * parameters(run.model)["total"]
        averages = 1 + (run.optim.ema is not None)
        stays += (3 + averages) * whole  # best twice, final, and the last checkpoint without moments
        most = max(most, 2 * checkpoint_bytes(run) + whole)  # two with moments, and one more best
    return stays + most


def checkpoint_bytes(run: Run) -> int:
    """Weights, and of what is trained two moments and perhaps an average, all float32."""
    counts = parameters(run.model)
    trained = sum(counts[part] for part in ("connector", "dino", "llm") if part not in run.optim.freeze)
    return 4 * counts["total"] + (8 + 4 * (run.optim.ema is not None)) * trained


def file_lock(folder: Path) -> str:
    """A second process is kept out: on a file system without locks two trainings could write one run."""
    path = folder / "lock"
    with open(path, "w") as one, open(path) as other:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "a file's lock keeps a second process out"
    raise UserError(
        f"the file system of {folder.parent} takes locks and does not keep them; two processes could train one run: "
        "mount it with locks, or put `results` elsewhere"
    )


def shared_memory(study: Study) -> str:
    """Only NCCL uses it, between the GPUs of a node: the loader reads with threads, decoding goes through pipes."""
    if all(run.operation.gpus < 2 for run in study.runs.values()):
        raise NotChecked("not needed: no run has several GPUs on a node, and nothing else here uses shared memory")
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
    """Where runs ask for GPUs: they are here, and what the study says they are."""
    wanted = max((run.operation.gpus for run in study.runs.values()), default=0)
    if not wanted:
        raise NotChecked("no run asks for a GPU")
    if not torch.cuda.is_available():
        raise NotChecked(f"no GPU here; runs ask for {wanted}")
    about, count = torch.cuda.get_device_properties(0), torch.cuda.device_count()
    said = f"{count} x {about.name}, {about.total_memory / GB:.1f} GB"
    if count < wanted:
        raise UserError(f"{said}, but runs ask for {wanted} (operation.gpus)")
    if study.gpu is not None and about.total_memory / GB < 0.95 * study.gpu.memory_gb:
        raise UserError(f"{said}, but the study says {study.gpu.memory_gb:g} GB (gpu.memory_gb): correct it")
    if study.gpu is not None and not re.search(rf"\b{re.escape(study.gpu.name)}\b", about.name):
        raise UserError(f"{said}, but the study says {study.gpu.name} (gpu.name): correct it")
    if not torch.cuda.is_bf16_supported() and any(r.train.precision == "bfloat16" for r in study.runs.values()):
        raise UserError(f"{said}, which cannot compute in bfloat16: set train.precision to float32")
    return said


def slurm() -> str:
    """Whether a cluster answers, if there is one; that it does not is no problem of a study that runs without it."""
    if shutil.which("sinfo") is None:
        raise NotChecked("no Slurm here")
    try:
        done = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=SLURM_S)
    except subprocess.TimeoutExpired as error:
        raise NotChecked(f"Slurm does not answer within {SLURM_S} s: is slurmctld running?") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise NotChecked(f"Slurm does not answer: {reason}")
    return f"Slurm answers, {len(done.stdout.splitlines())} lines of partitions"


def free_memory() -> int:
    """Bytes of host memory that could be taken now."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
