"""Copies of the metrics for Weights & Biases and TensorBoard.

The run's own metrics files are complete without them. A missing package or login stops the run before it trains. A
tracker that fails later, because of a full disk or the network, is closed with one message, and the training continues.
"""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fvlm.config.schema import Run
from fvlm.errors import UserError
from fvlm.train.ranks import Ranks

FINISH_SECONDS = 60.0  # the longest that a lost network delays the end of a run
ALONE = Ranks()


def require_packages(run: Run) -> None:
    """Raise UserError if `operation.wandb` or `operation.tensorboard` needs a package that is not installed."""
    for package, wanted, off in (
        ("wandb", run.operation.wandb is not None, "null"),
        ("tensorboard", run.operation.tensorboard, "false"),
    ):
        if wanted and find_spec(package) is None:
            raise UserError(
                f"run {run.name!r}: operation.{package} needs the package {package}, which is not installed; "
                f"pip install 'fvlm[{package}]', or write operation.{package}: {off}"
            )


class Trackers:
    """The trackers that `operation.wandb` and `operation.tensorboard` request, by name; by default none.

    study_name    the project in Weights & Biases
    folder        the run's; its wandb/ and tensorboard/ hold the copies
    identity      of this training, 32 characters; a training that resumes continues the copies of its identity
    resume_step   the step from which it resumes; None: from the start
    ranks         the first one alone has trackers
    raises        UserError if Weights & Biases needs a login
    """

    def __init__(
        self,
        run: Run,
        study_name: str,
        folder: Path,
        identity: str,
        resume_step: int | None,
        ranks: Ranks = ALONE,
    ):
        self.run, self.resume_step, self.trackers = run, resume_step, {}

        def open_all() -> None:
            if run.operation.wandb is not None:
                with self._closed_on_error("Weights & Biases") as name:
                    self.trackers[name] = _Wandb(run, study_name, folder, identity)
            if run.operation.tensorboard:
                with self._closed_on_error("TensorBoard") as name:
                    self.trackers[name] = _TensorBoard(run, folder, resume_step)

        ranks.at_first(open_all)

    def log(self, kind: Literal["train", "validation"], record: dict) -> None:
        """Copy the numbers of a record, unless they were copied before the training was interrupted.

        A checkpoint may be from before the validation of its step, so a validation of the resumed step is copied.
        """
        new = record["step"] + (kind == "validation")
        if not self.trackers or (self.resume_step is not None and new <= self.resume_step):
            return
        values = {
            f"{kind}/{name.replace(':', '/')}": value
            for name, value in record.items()
            if name != "step" and isinstance(value, int | float)
        }
        for name in list(self.trackers):
            with self._closed_on_error(name):
                self.trackers[name].log(values, record["step"])

    def close(self) -> None:
        for name in list(self.trackers):
            with self._closed_on_error(name):
                self.trackers.pop(name).close()

    @contextmanager
    def _closed_on_error(self, name: str) -> Iterator[str]:
        try:
            yield name
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - no error of a tracker may stop the training
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            print(f"{self.run.name}: {name} failed ({reason}); going on without it", file=sys.stderr, flush=True)
            self.trackers.pop(name, None)


class _Wandb:
    """A run of Weights & Biases. Its id is the training's identity, so that a resumed training continues it."""

    def __init__(self, run: Run, study_name: str, folder: Path, identity: str):
        mode = run.operation.wandb
        os.environ.setdefault("WANDB_CACHE_DIR", str((folder / "wandb").absolute()))  # instead of the user's home
        os.environ["WANDB_SILENT"] = "true"  # no questions on a terminal
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
            reason = str(error).rstrip(".")
            raise UserError(
                f"run {run.name!r}: operation.wandb is {mode!r}, but Weights & Biases reports: {reason}; or write "
                "operation.wandb: offline, and upload later with `wandb sync`"
            ) from error

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class _TensorBoard:
    """An event file. TensorBoard hides what earlier files hold of later steps or of an earlier training.

    It is written at once and in this thread. TensorBoard's own writer uses a thread, which loses two minutes of steps
    in a kill although a checkpoint may have them, and prints an error of its own when the disk is full.
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
