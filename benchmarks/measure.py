"""Shared by the benchmarks: CPU time, memory, turns in processes of their own, and Markdown tables."""

import ctypes
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def cpu_seconds() -> float:
    """Return user and system seconds of this process, its threads and its finished children."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def start_peak() -> None:
    """Return freed memory to the kernel, and reset its record of this process's peak memory. Linux only."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def status(field: str) -> int:
    """Return a field of this process's memory in KiB: VmRSS is the memory now, VmHWM the peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def medians_by_turns(
    names: list[str], turns: int, command: Callable[[str], list[str]], about: str
) -> dict[str, dict[str, float]]:
    """Measure alternatives by turns, each turn in a process of its own, so that all meet the same busy machine.

    command     arguments of Python for an alternative; the last line that it prints is a JSON object of numbers
    returns     alternative -> the median of each number over the turns
    """
    measured: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(turns):
        for name in names:
            process = subprocess.run([sys.executable, *command(name)], stdout=subprocess.PIPE, text=True, check=True)
            measured[name].append(json.loads(process.stdout.splitlines()[-1]))
            print(f"{about}, {name}: {measured[name][-1]}", file=sys.stderr, flush=True)
    return {
        name: {key: statistics.median(turn[key] for turn in of_name) for key in of_name[0]}
        for name, of_name in measured.items()
    }


def markdown(header: list, rows: list[list], words: int = 1) -> str:
    """Return a table whose first `words` columns hold words, and the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (header, rule, *rows))
