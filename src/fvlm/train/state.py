"""Files that survive a kill: the lock of a run, and checkpoints that are written to a temporary file and renamed."""

import errno
import fcntl
import os
import pickle
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError

from fvlm.errors import BROKEN, UserError, first_line
from fvlm.files import check_archive, check_pickle, write_beside
from fvlm.records import unwritten
from fvlm.train.ranks import Ranks

KINDS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")  # in a checkpoint
UMASK = os.umask(0)  # there is no way to read it alone
os.umask(UMASK)
FORMAT = 3  # of a checkpoint; part of its identity, so that one of another format is not resumed


class RunLock:
    """A lock that one training of a run holds. Its first rank takes it, and it ends with that process.

    A second process waits: if Snakemake was killed, its training may live on, and the second process resumes from the
    last checkpoint of that training.

    digest  of the run's configuration, for `fvlm status`
    """

    def __init__(self, state: Path, ranks: Ranks, digest: str):
        self.path, self.ranks, self.digest, self.file = state / "lock", ranks, digest, None

    def __enter__(self) -> "RunLock":
        waited = False
        while not self.ranks.at_first(self._take):
            if self.ranks.first and not waited:
                self.file.seek(0)
                holder = self.file.read().strip() or "another process"
                print(f"{self.path}: {holder} is training this run; waiting until it ends", file=sys.stderr, flush=True)
            waited = True
            time.sleep(0.2)
        return self

    def _take(self) -> bool:
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "a+")  # noqa: SIM115 - open as long as the run
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {socket.gethostname()}, configuration {self.digest}")
        self.file.flush()
        return True

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()


def write_weights(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write_beside` for a large file; raises UserError if it cannot be written.

    safetensors makes files that only their owner can read; this one gets the usual mode.
    """

    def write_readable(part: Path) -> None:
        write(part)
        with suppress(OSError):  # a file system without modes
            part.chmod(0o666 & ~UMASK)

    try:
        write_beside(path, write_readable)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise unwritten(path, error) from error


def save_checkpoint(state: Path, step: int, content: dict, keep: int) -> int:
    """Write checkpoint `step` and delete all but the newest `keep`; return its bytes."""
    path = _path_of(state, step)
    write_weights(path, lambda part: torch.save(content, part))
    for old in _stored(state)[:-keep]:
        old.unlink()
    return path.stat().st_size


def load_checkpoint(state: Path, identity: str) -> dict | None:
    """Return the newest readable checkpoint, or None if it is of another configuration, other data or another parent.

    A damaged checkpoint is deleted, so that it does not count among the newest that are kept.
    """
    for path in reversed(_stored(state)):
        try:
            content = read_checkpoint(path)
        except ValueError as error:
            reason = first_line(error)
            print(f"{path}: unreadable checkpoint, taking the one before it ({reason})", file=sys.stderr)
            path.unlink()
            continue
        if content["identity"] == identity:
            return content
        print(f"{path}: of another configuration, other data or another parent; starting over", file=sys.stderr)
        return None
    return None


def read_checkpoint(path: Path) -> dict:
    """Return the content of a checkpoint, on the CPU.

    raises      ValueError if the file is damaged or holds other objects than a checkpoint; OSError or MemoryError if it
                cannot be read now, but may be whole
    """
    try:
        check_archive(path)
        check_pickle(path, KINDS)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except (*BROKEN, pickle.UnpicklingError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a damaged file has a wrong offset
            raise
        raise ValueError(first_line(error)) from error
    if not isinstance(content, dict) or not {"identity", "step"} <= content.keys():
        raise ValueError("it holds no identity and step")
    return content


def _stored(state: Path) -> list[Path]:
    """Return the checkpoints from the oldest to the newest."""
    return sorted(path for path in state.glob("step_*.pt") if path.is_file())


def load_on_all_ranks(state: Path, identity: str, ranks: Ranks) -> dict | None:
    """Return, in all ranks, the checkpoint that `load_checkpoint` returns in the first rank."""
    saved = load_checkpoint(state, identity) if ranks.first else None
    (step, *_) = ranks.gather(None if saved is None else saved["step"])
    error = None
    if step is not None and saved is None:
        try:
            saved = read_checkpoint(_path_of(state, step))
        except OSError as problem:
            error = UserError(
                f"{_path_of(state, step)} cannot be read by rank {ranks.rank} on {socket.gethostname()} ({problem}); "
                "put the results into a folder that all nodes share"
            )
    ranks.agree(error=error)
    return saved


def _path_of(state: Path, step: int) -> Path:
    return state / f"step_{step:08d}.pt"


def clear(folder: Path) -> None:
    """Delete what another training left in a run's folder and this training may not replace.

    That is its summary, by which the run would count as finished, its attention maps, and its checkpoints, best weights
    and logs.
    """
    for pattern in ("run_summary.json", "state/step_*.pt", "state/best_*.safetensors", "state/*.jsonl"):
        for path in folder.glob(pattern):
            path.unlink()
    shutil.rmtree(folder / "attention", ignore_errors=True)
