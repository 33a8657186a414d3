"""Lines of progress on standard error."""

import sys
import time


class Progress:
    """A line every few seconds, and one at the end.

    what, unit  what is made, and of what units
    total       number of units
    """

    def __init__(self, what: str, total: int, unit: str, every_s: float = 5) -> None:
        self.what, self.total, self.unit, self.every_s, self.done = what, total, unit, every_s, 0
        self.start = self.last = time.monotonic()

    def step(self, note: str = "") -> None:
        """Count a unit."""
        self.done += 1
        now = time.monotonic()
        if now - self.last < self.every_s and self.done < self.total:
            return
        self.last = now
        rate = self.done / max(now - self.start, 1e-9)
        left_s = (self.total - self.done) / rate
        line = f"{self.what}: {self.done}/{self.total} {self.unit}, {rate:.1f}/s, {left_s:.0f} s left{note}"
        print(line, file=sys.stderr, flush=True)
