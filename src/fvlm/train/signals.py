"""Signals that request a training to stop: all ranks save after the current step, and the exit status reports it."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fvlm.errors import Stopped

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: no error, start the command again
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)  # SIGUSR1: Slurm's warning before the time limit
STATUS = {signal.SIGTERM: REQUEUE, signal.SIGUSR1: REQUEUE, signal.SIGINT: 130}
SECOND_CTRL_C_S = 2.0  # a second Ctrl-C after this time stops at once; an earlier one may be the first, passed on


class StopRequest:
    """The exit status that a signal has requested; 0 without a signal.

    Before `wait_for_step` there is nothing to save, and a signal raises `Stopped` at once. After it a signal only sets
    `status`, which the training loop reads after each step.
    """

    def __init__(self) -> None:
        self.status, self.waits, self.first = 0, False, 0.0

    def wait_for_step(self) -> None:
        self.waits = True

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        before = {number: signal.signal(number, self._receive) for number in STATUS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.status and now - self.first > SECOND_CTRL_C_S:
            raise KeyboardInterrupt
        self.status, self.first = self.status or STATUS[number], self.first or now
        if not self.waits:
            raise Stopped(self.status, "before its first step; nothing is lost")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, a signal ends the process at once: while C++ waits, Python calls no handler."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STATUS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
