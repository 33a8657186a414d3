"""What survives a kill: one lock per run, checkpoints written beside and renamed."""

import errno
import fcntl
import os
import pickle
import pickletools
import re
import socket
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

from fvlm.errors import BROKEN, UserError, first_line
from fvlm.files import check_archive, write_beside
from fvlm.records import unwritten
from fvlm.train.ranks import Ranks

KINDS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")  # in a checkpoint
FORMAT = 3  # of a checkpoint; one of another format is not continued


class RunLock:
    """At most one process trains a run, or several ranks together. The lock is the first one's, and goes with its
    process, however that ends.

    A second process waits: Snakemake may have been killed while its training lives on, and then that training's
    last checkpoint is where the second one continues.

    digest  of the run's configuration, for `fvlm status`
    """

    def __init__(self, state: Path, ranks: Ranks, digest: str):
        self.path, self.ranks, self.digest, self.file = state / "lock", ranks, digest, None

    def __enter__(self) -> "RunLock":
        waited = False
        while not self.ranks.at_first(self._taken):
            if self.ranks.first and not waited:
                self.file.seek(0)
                holder = self.file.read().strip() or "another process"
                print(f"{self.path}: {holder} is training this run; waiting until it ends", file=sys.stderr, flush=True)
            waited = True
            time.sleep(0.2)
        return self

    def _taken(self) -> bool:
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
    """`write_beside` for what may fill the disk.

    raises   UserError if it cannot be written; of a full disk torch itself says no more than "unexpected pos"
    """
    try:
        write_beside(path, write)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise unwritten(path, error) from error


def save_checkpoint(state: Path, step: int, content: dict, keep: int) -> int:
    """Write checkpoint `step` and drop all but the newest `keep`; returns its bytes."""
    path = _path_of(state, step)
    write_weights(path, lambda beside: torch.save(content, beside))
    for old in _stored(state)[:-keep]:
        old.unlink()
    return path.stat().st_size


def load_checkpoint(state: Path, identity: str) -> dict | None:
    """The newest checkpoint of this very configuration, data and parent that can be read whole, or None.

    A broken one is deleted, or it would count among the newest that are kept.
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
        print(
            f"{path}: made by another configuration, other data or another parent; starting over",
            file=sys.stderr,
        )
        return None
    return None


def read_checkpoint(path: Path) -> dict:
    """One checkpoint, on the CPU.

    raises      ValueError if it is damaged, or holds what no checkpoint does; OSError, MemoryError where it may be
                whole and cannot be read here and now
    """
    try:
        check_archive(path)
        _check_kinds(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except (*BROKEN, pickle.UnpicklingError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: sought where the damaged file led
            raise
        raise ValueError(first_line(error)) from error
    if not isinstance(content, dict) or not {"identity", "step"} <= content.keys():
        raise ValueError("it holds no identity and step")
    return content


def _check_kinds(path: Path) -> None:
    """Refuse what torch would also build without running code: `bytearray(10**12)`, say. Raises ValueError."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        content = b"".join(map(archive.read, names))
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST") and not KINDS.fullmatch(str(argument)):
            raise ValueError(f"it holds {argument or 'something'}, which no checkpoint does")


def _stored(state: Path) -> list[Path]:
    """The checkpoints, from the oldest to the newest."""
    return sorted(path for path in state.glob("step_*.pt") if path.is_file())


def continued(state: Path, identity: str, ranks: Ranks) -> dict | None:
    """`load_checkpoint` of the first rank, which all of them read."""
    saved = load_checkpoint(state, identity) if ranks.first else None
    (step, *_) = ranks.gather(None if saved is None else saved["step"])
    missing = None
    if step is not None and saved is None:
        try:
            saved = read_checkpoint(_path_of(state, step))
        except OSError as error:
            missing = UserError(
                f"{_path_of(state, step)} cannot be read by rank {ranks.rank} on {socket.gethostname()} ({error}); "
                "results must lie where all nodes see them"
            )
    ranks.agree(error=missing)
    return saved


def _path_of(state: Path, step: int) -> Path:
    return state / f"step_{step:08d}.pt"


def clear(state: Path) -> None:
    """Forget an earlier configuration's checkpoints, best weights and metrics."""
    for pattern in ("step_*.pt", "best_*.safetensors", "*.jsonl"):
        for path in state.glob(pattern):
            path.unlink()
