"""All faults, in the order of the table."""

from tests.faults import cases, ranks, workflow  # noqa: F401 - each adds its faults
from tests.faults.fault import CASES, NO_FAULT

__all__ = ["CASES", "NO_FAULT"]
