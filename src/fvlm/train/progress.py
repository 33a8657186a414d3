"""Where the time of a run goes, and one line every few seconds: where it is, how fast, and when it will be done."""

import math
import sys
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, field

from fvlm.config.schema import Run


@dataclass
class Spent:
    """Seconds spent on a run by all the processes that worked on it, as far as its checkpoints remember them.

    steps               in training steps, waiting for data included
    validations         at evaluation points, of which there were `validation_count`
    checkpoints         writing them, `checkpoint_count` of them; the largest has `checkpoint_bytes`
    earlier, started    wall time of earlier processes; when this one began
    begun               when the first one did, nanoseconds since 1970: it tells two trainings of one run apart
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
    """Speed is that of this process's own steps: an earlier one may have run elsewhere.

    evaluate_after  steps with an evaluation
    peak            FLOP/s of the device, or None
    """

    def __init__(
        self, run: Run, step: int, steps: int, evaluate_after: Collection[int], spent: Spent, peak: float | None
    ):
        self.run, self.first, self.steps, self.spent, self.peak = run, step, steps, spent, peak
        self.evaluate_after, self.seconds_before = evaluate_after, spent.steps
        self.samples = self.flops = 0.0
        self.shown = time.monotonic()

    def show(self, record: dict, samples: int, flops: float, final: dict | None) -> None:
        """Print a line if the last one is old enough, or the run is done.

        record          of the step; samples, flops: its own
        final           of the last evaluation
        """
        self.samples, self.flops = self.samples + samples, self.flops + flops
        now, step = time.monotonic(), record["step"]
        if step < self.steps and now - self.shown < self.run.operation.log_seconds:
            return
        self.shown = now
        seconds = self.spent.steps - self.seconds_before
        speed = self.flops / seconds
        used = f"{speed / self.peak:.1%} MFU" if self.peak else f"{speed / 1e12:.3g} TFLOP/s"
        checkpoints = self.spent.about_checkpoints()
        print(
            f"{self.run.name:<10} step {step:>6}/{self.steps}  loss {_number(record['train_loss'])}  "
            f"val {_number(final and final['val_loss'])}  {self.samples / seconds:.1f} samples/s  {used}  "
            f"{record['memory_gb']:.1f} GB  {clock(self.seconds_left(step))} left  "
            f"(checkpoints: {checkpoints['bytes'] / 1e6:,.0f} MB, {checkpoints['share_of_time']:.1%} of the time)",
            file=sys.stderr,
            flush=True,
        )

    def seconds_left(self, step: int) -> float:
        """Of the steps behind `step` at this process's speed, with their evaluations and checkpoints."""
        spent, operation = self.spent, self.run.operation
        per_step = (spent.steps - self.seconds_before) / (step - self.first)
        steps = (self.steps - step) * per_step
        evaluations = sum(later > step for later in self.evaluate_after)
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
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
