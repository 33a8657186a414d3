"""Lines of progress on standard error."""

import sys
import time

LEAST_S = 20  # before the time that is left is estimated


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
        # The first units wait for processes to start, so that their speed says little.
        known = now - self.start >= LEAST_S or self.done == self.total
        left = f", {(self.total - self.done) / rate:.0f} s left" if known else ""
        line = f"{self.what}: {self.done}/{self.total} {self.unit}, {rate:.1f}/s{left}{note}"
        print(line, file=sys.stderr, flush=True)
