"""One check and what it found."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fvlm.errors import UserError

OK, PROBLEM, NOT_CHECKED = "ok", "problem", "not checked"
EXPECTED = (UserError, OSError, RuntimeError, ValueError, MemoryError)  # out of GPU memory is a RuntimeError


@dataclass(frozen=True)
class Check:
    """state: OK, PROBLEM or NOT_CHECKED; said: what was tried and found, or why not."""

    name: str
    state: str
    said: str
    seconds: float = 0.0


class NotChecked(Exception):
    """Why something cannot be tried here."""


def tried(name: str, function: Callable[[], str]) -> Check:
    """What `function` says of its success; its exception is the problem, or the reason why it was not tried."""
    started = time.monotonic()
    try:
        state, said = OK, function()
    except NotChecked as reason:
        state, said = NOT_CHECKED, str(reason)
    except EXPECTED as error:
        lines = str(error).strip().splitlines()
        state, said = PROBLEM, lines[0] if lines else type(error).__name__
    return Check(name, state, said, time.monotonic() - started)


def table_of(checks: Iterable[Check]) -> str:
    """One line per check, then the number of problems."""
    checks = list(checks)
    width = max(len(check.name) for check in checks)
    lines = [f"{c.state:<12}{c.name:<{width}}  {c.seconds:6.1f} s  {c.said}" for c in checks]
    counts = {state: sum(check.state == state for check in checks) for state in (OK, PROBLEM, NOT_CHECKED)}
    total = sum(check.seconds for check in checks)
    return "\n".join([
        *lines,
        f"{len(checks)} checks in {total:.0f} s: {counts[OK]} ok, {counts[PROBLEM]} problems, "
        f"{counts[NOT_CHECKED]} not checked",
    ])  # fmt: skip
