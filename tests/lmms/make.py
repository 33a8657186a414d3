"""Make the environment of lmms-eval, whose packages do not fit this project's; 2.4 GB.

python tests/lmms/make.py FOLDER
"""

import subprocess
import sys
import venv
from pathlib import Path

import torch

TORCH = f"torch=={torch.__version__.split('+')[0]}"
STEPS = (  # of pip
    ("install", "--no-compile", "lmms-eval==0.7.3", TORCH, "transformers>=5.23,<6", "filelock<4"),
    ("install", "--no-deps", "av>=17"),  # lmms-eval wants an older one, which scales frames differently
    ("uninstall", "--yes", "torchvision"),  # its wheel cannot be imported beside a torch for CPUs
)


class Unavailable(Exception):
    """The reason why the packages cannot be had."""


def make(folder: Path) -> Path:
    """Return the folder with the programs of the environment, made unless it is there; raises Unavailable."""
    programs, done = folder / "bin", folder / "steps.txt"
    if done.is_file() and done.read_text() == repr(STEPS):
        return programs
    venv.create(folder, clear=True, with_pip=True)
    for step in STEPS:
        pip(programs, *step)
    done.write_text(repr(STEPS))
    return programs


def pip(programs: Path, *arguments: str) -> None:
    command = [programs / "python", "-m", "pip", "--quiet", "--retries", "1", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        reason = ([line for line in ended.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"])[0]
        raise Unavailable(f"pip {' '.join(arguments)}: {reason}")


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
