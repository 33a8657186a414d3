"""Copies of the metrics for Weights & Biases and TensorBoard, for those who like to watch there.

The run's own metrics files are the truth. So a package that is missing, or a login that is, stops the run before it
trains; a copy that fails later, for want of disk or network, is given up with one line, and the training goes on.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

from fvlm.config.schema import Run
from fvlm.errors import UserError
from fvlm.train.ranks import Ranks

FINISH_SECONDS = 60.0  # a network that is gone does not hold up the end of a run for longer


class Mirror(Protocol):
    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def require_packages(run: Run) -> None:
    """Raise UserError if a package is missing that `operation.wandb` or `operation.tensorboard` wants."""
    for package, wanted, off in (
        ("wandb", run.operation.wandb is not None, "null"),
        ("tensorboard", run.operation.tensorboard, "false"),
    ):
        if wanted and find_spec(package) is None:
            raise UserError(
                f"run {run.name!r}: operation.{package} wants the package {package}, which is not installed; "
                f"pip install 'fvlm[{package}]', or write operation.{package}: {off}"
            )


class Mirrors:
    """The copies that `operation.wandb` and `operation.tensorboard` ask for; usually none.

    study_name    the project in Weights & Biases
    folder        the run's; the copies lie in its wandb/ and tensorboard/
    identity      of this training, 32 characters: one that is continued goes on in the same place
    resume_step   where it goes on; None: from the start
    raises        UserError if Weights & Biases wants a login
    """

    def __init__(self, run: Run, study_name: str, folder: Path, identity: str, resume_step: int | None):
        self.run, self.resume_step = run, resume_step
        self.mirrors: dict[str, Mirror] = {}
        if run.operation.wandb is not None:
            self._open("Weights & Biases", lambda: _Wandb(run, study_name, folder, identity))
        if run.operation.tensorboard:
            self._open("TensorBoard", lambda: _TensorBoard(run, folder, resume_step))

    @classmethod
    def first_of(cls, ranks: Ranks, *about) -> "Mirrors":
        """Those of the first rank; the others copy nothing. If they cannot be opened, all raise UserError."""
        made: list[Mirrors] = []
        ranks.at_first(lambda: made.append(cls(*about)))
        if not made:
            run, *rest = about
            off = run.operation.model_copy(update={"wandb": None, "tensorboard": False})
            made.append(cls(run.model_copy(update={"operation": off}), *rest))
        return made[0]

    def log(self, kind: Literal["train", "validation"], record: dict) -> None:
        """Copy the numbers of a metrics record, unless it was copied before the run was interrupted.

        That may have been after a step and before its validation.
        """
        new = record["step"] + (kind == "validation")
        if not self.mirrors or (self.resume_step is not None and new <= self.resume_step):
            return
        values = {
            f"{kind}/{name.replace(':', '/')}": value
            for name, value in record.items()
            if name != "step" and isinstance(value, int | float)
        }
        for name in list(self.mirrors):
            with self._survived(name):
                self.mirrors[name].log(values, record["step"])

    def close(self) -> None:
        for name in list(self.mirrors):
            with self._survived(name):
                self.mirrors.pop(name).close()

    def _open(self, name: str, make: Callable[[], Mirror]) -> None:
        with self._survived(name):
            self.mirrors[name] = make()

    @contextmanager
    def _survived(self, name: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever somebody else's service dies of, the training lives
            said = " ".join(str(error).split())[:200] or type(error).__name__
            print(f"{self.run.name}: {name} failed ({said}); going on without it", file=sys.stderr, flush=True)
            self.mirrors.pop(name, None)


class _Wandb:
    """A run of Weights & Biases. Its id is the training's identity: what is continued is continued there."""

    def __init__(self, run: Run, study_name: str, folder: Path, identity: str):
        mode = run.operation.wandb
        # What it would leave in the user's home; and it asks for nothing on a terminal when it is silent.
        os.environ.setdefault("WANDB_CACHE_DIR", str((folder / "wandb").absolute()))
        os.environ["WANDB_SILENT"] = "true"
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would look for a network
        import wandb

        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, finish_timeout=FINISH_SECONDS
        )
        try:
            self.run = wandb.init(
                project=study_name,
                name=run.name,
                group=run.family,
                id=identity,
                resume="allow",
                dir=str(folder.absolute()),
                mode=mode,
                config=run.model_dump(mode="json"),
                settings=settings,
            )
        except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            said = str(error).rstrip(".")
            raise UserError(
                f"run {run.name!r}: operation.wandb is {mode!r}, but Weights & Biases says: {said}; or write "
                "operation.wandb: offline, and upload later with `wandb sync`"
            ) from error

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class _TensorBoard:
    """An event file. What earlier files hold of later steps, or of an earlier training, is hidden by TensorBoard.

    Written here and at once: the usual writer's thread loses two minutes of steps in a kill, although a checkpoint may
    cover them, and speaks up on its own when the disk is full.
    """

    def __init__(self, run: Run, folder: Path, resume_step: int | None):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.Event, self.Summary = event_pb2.Event, summary_pb2.Summary
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        (folder / "tensorboard").mkdir(parents=True, exist_ok=True)
        self.file = open(folder / "tensorboard" / name, "wb")  # noqa: SIM115 - open as long as the run
        self.writer = RecordWriter(self.file)
        first = 0 if resume_step is None else resume_step + 1
        self._write(file_version="brain.Event:2")
        self._write(step=first, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def log(self, values: dict[str, float], step: int) -> None:
        summary = self.Summary(value=[self.Summary.Value(tag=tag, simple_value=x) for tag, x in values.items()])
        self._write(step=step, summary=summary)

    def close(self) -> None:
        self.file.close()

    def _write(self, **content: object) -> None:
        self.writer.write(self.Event(wall_time=time.time(), **content).SerializeToString())
        self.file.flush()
