"""Signals that ask a training to stop: it saves at the next step boundary, on all ranks, and says so by its status."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fvlm.errors import Stopped

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start me again
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)  # SIGUSR1: Slurm's warning before the time limit
STATUS = {signal.SIGTERM: REQUEUE, signal.SIGUSR1: REQUEUE, signal.SIGINT: 130}
IMPATIENT = 2.0  # seconds; a second Ctrl-C after so long means at once. Launchers pass the first one on, as a second


class StopRequest:
    """Which exit status a signal has asked for; 0: none has.

    While the run prepares there is nothing to save, and a signal raises `Stopped` at once. From `wait_for_step` on it
    is only noted, and the loop asks at each step boundary.
    """

    def __init__(self) -> None:
        self.status, self.waits, self.first = 0, False, 0.0

    def wait_for_step(self) -> None:
        self.waits = True

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        before = {number: signal.signal(number, self._take) for number in STATUS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.status and now - self.first > IMPATIENT:
            raise KeyboardInterrupt
        self.status, self.first = self.status or STATUS[number], self.first or now
        if not self.waits:
            raise Stopped(self.status, "before its first step; nothing is lost")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, a signal ends the process at once: while C++ waits, no handler of Python's is called."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STATUS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
