"""All faults, in the order of the table."""

from tests.faults import cases, ranks, workflow  # noqa: F401 - each adds its own
from tests.faults.fault import CASES, UNHARMED

__all__ = ["CASES", "UNHARMED"]
