"""One line every few seconds: where the run is, how fast, and when it will be done."""

import sys
import time

from fvlm.schema import Run


class Progress:
    def __init__(self, run: Run, step: int, steps: int):
        self.run, self.first, self.steps = run, step, steps
        self.started = self.shown = time.monotonic()

    def show(self, record: dict, final: dict | None) -> None:
        """Print a line if the last one is old enough, or the run is done."""
        now, step = time.monotonic(), record["step"]
        if step < self.steps and now - self.shown < self.run.operation.log_seconds:
            return
        self.shown = now
        rate = (step - self.first) / max(now - self.started, 1e-9)
        left = (self.steps - step) / rate
        validation = f"  val {final['val_loss']:.3f}" if final else ""
        print(
            f"{self.run.name:<10} step {step:>6}/{self.steps}  loss {record['train_loss']:.3f}{validation}  "
            f"{rate * self.run.optim.batch_size:.1f} samples/s  {clock(left)} left",
            file=sys.stderr,
            flush=True,
        )


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
