"""One preflight check and its result."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fvlm.errors import UserError, first_line

OK, PROBLEM, NOT_CHECKED = "ok", "problem", "not checked"
EXPECTED = (UserError, OSError, RuntimeError, ValueError, MemoryError)  # out of GPU memory is a RuntimeError


@dataclass(frozen=True)
class Check:
    """Result of a check. state: OK, PROBLEM or NOT_CHECKED; message: what was found, or why it was not checked."""

    name: str
    state: str
    message: str
    seconds: float = 0.0


class NotChecked(Exception):
    """Raised with the reason why a check is not possible here."""


def tried(name: str, function: Callable[[], str]) -> Check:
    """Run a check, which returns a message; its exception is the problem, or the reason why it is not possible."""
    started = time.monotonic()
    try:
        state, message = OK, function()
    except NotChecked as reason:
        state, message = NOT_CHECKED, str(reason)
    except EXPECTED as error:
        state, message = PROBLEM, first_line(error)
    return Check(name, state, message, time.monotonic() - started)


def table_of(checks: Iterable[Check]) -> str:
    """Return one line per check, then the totals."""
    checks = list(checks)
    width = max(len(check.name) for check in checks)
    lines = [f"{c.state:<12}{c.name:<{width}}  {c.seconds:6.1f} s  {c.message}" for c in checks]
    counts = {state: sum(check.state == state for check in checks) for state in (OK, PROBLEM, NOT_CHECKED)}
    total = sum(check.seconds for check in checks)
    return "\n".join([
        *lines,
        f"{len(checks)} checks in {total:.0f} s: {counts[OK]} ok, {counts[PROBLEM]} problems, "
        f"{counts[NOT_CHECKED]} not checked",
    ])  # fmt: skip
