"""The time that a run takes, and a progress line every few seconds."""

import math
import sys
import time
from dataclasses import asdict, dataclass, field


@dataclass
class TimeSpent:
    """Seconds that all processes of a run have taken, as far as its checkpoints record them.

    steps               in training steps, waiting for data included
    validations         in evaluations, of which there were `validation_count`
    checkpoints         in writing checkpoints: `checkpoint_count` of them, the largest with `checkpoint_bytes`
    earlier, started    wall time of earlier processes; when this process began
    begun               when the first process began, nanoseconds since 1970: different for two trainings of one run
    """

    steps: float = 0.0
    validations: float = 0.0
    validation_count: int = 0
    checkpoints: float = 0.0
    checkpoint_count: int = 0
    checkpoint_bytes: int = 0
    earlier: float = 0.0
    started: float = field(default_factory=time.monotonic)
    begun: int = field(default_factory=time.time_ns)

    @property
    def wall(self) -> float:
        return self.earlier + time.monotonic() - self.started

    def state_dict(self) -> dict:
        state = asdict(self) | {"earlier": self.wall}
        del state["started"]
        return state

    def load_state_dict(self, state: dict) -> None:
        self.__dict__.update(state)

    def about_checkpoints(self) -> dict:
        return {
            "count": self.checkpoint_count,
            "seconds": round(self.checkpoints, 3),
            "share_of_time": round(self.checkpoints / self.wall, 5),
            "bytes": self.checkpoint_bytes,
        }


class Progress:
    """The progress line of a `Trainer` (fvlm.train.loop).

    Its speed is that of this process, since an earlier one may have run on another machine.
    """

    def __init__(self, trainer):
        self.trainer, self.first = trainer, trainer.step
        self.samples_before, self.seconds_before = trainer.samples_seen, trainer.spent.steps
        self.shown = time.monotonic()

    def show(self, record: dict) -> None:
        """Print a line if the last one is old enough, or if the run is finished.

        record   of the step that has just been made
        """
        trainer, step, now = self.trainer, record["step"], time.monotonic()
        if step < trainer.total and now - self.shown < trainer.run.operation.log_seconds:
            return
        self.shown = now
        seconds, samples = trainer.spent.steps - self.seconds_before, record["samples"]
        speed = float(trainer.work[samples] - trainer.work[self.samples_before]) / seconds
        peak, evaluation = trainer.setup.peak, trainer.last_evaluation
        used = f"{speed / peak:.1%} MFU" if peak else f"{speed / 1e12:.3g} TFLOP/s"
        checkpoints = trainer.spent.about_checkpoints()
        print(
            f"{trainer.run.name:<10} step {step:>6}/{trainer.total}  loss {_number(record['train_loss'])}  "
            f"val {_number(evaluation and evaluation['val_loss'])}  "
            f"{(samples - self.samples_before) / seconds:.1f} samples/s  {used}  {record['memory_gb']:.1f} GB  "
            f"{clock(self.seconds_left(step))} left  "
            f"(checkpoints: {checkpoints['bytes'] / 1e6:,.0f} MB, {checkpoints['share_of_time']:.1%} of the time)",
            file=sys.stderr,
            flush=True,
        )

    def seconds_left(self, step: int) -> float:
        """Return the time of the remaining steps at this process's speed, with their evaluations and checkpoints."""
        spent, operation = self.trainer.spent, self.trainer.run.operation
        per_step = (spent.steps - self.seconds_before) / (step - self.first)
        steps = (self.trainer.total - step) * per_step
        evaluations = sum(later > step for later in self.trainer.evaluate_after)
        between = min(operation.checkpoint_steps * per_step, 60 * (operation.checkpoint_minutes or math.inf))
        checkpoints = math.ceil(steps / between)
        return (
            steps
            + evaluations * spent.validations / max(1, spent.validation_count)
            + checkpoints * spent.checkpoints / max(1, spent.checkpoint_count)
        )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def clock(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
