"""The records of a run: JSON lines that are appended while it trains, and one CSV file at its end."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

from fvlm.errors import UserError, first_line
from fvlm.files import write_beside

# what the best weights of a run are called, here and in the published study
BEST_WEIGHTS = ("model/best.safetensors", "best.pt", "best.safetensors", "model.safetensors", "latest.pt")


class MetricsLog:
    """JSON lines, flushed one by one. On resume, the lines after `resume_step` are dropped, so each step is there once.

    resume_step   step of the checkpoint; None: the log starts empty
    """

    def __init__(self, path: Path, resume_step: int | None):
        self.path = path
        kept = []
        if resume_step is not None and path.exists():
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    break  # a line that a kill has cut
                if record["step"] > resume_step:
                    break
                kept.append(line)
        write_beside(path, lambda part: part.write_text("".join(line + "\n" for line in kept)))
        self.file = open(path, "a")  # noqa: SIM115 - open as long as the run

    def append(self, record: dict) -> None:
        try:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        except OSError as error:
            raise unwritten(self.path, error) from error

    def sync(self) -> None:
        """Flush the lines to the disk, before a checkpoint of their steps is written."""
        os.fsync(self.file.fileno())

    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def newest_checkpoint(state: Path) -> tuple[int, Path] | None:
    """Return the step and the path of the newest checkpoint in the folder state/ of a run, None if there is none."""
    found = [path for path in state.glob("step_*.pt") if path.stem[5:].isdecimal()]
    return max(((int(path.stem[5:]), path) for path in found), default=None)


def weights_in(path: Path | str) -> Path:
    """Return the file with the best weights in a folder, of this project or of the published study.

    path    the folder of a run, or a file, which is returned unchanged
    raises  UserError if it does not exist, or holds no weights
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; expected weights (.safetensors, .pt) or the folder of a run")
    places = (path / name for name in BEST_WEIGHTS)
    found = next((place for place in map(relinked, places) if place is not None), None)
    steps = sorted(path.glob("step_*.pt"))
    if found is None and not steps:
        raise UserError(f"{path}: no weights in it; expected one of {', '.join(BEST_WEIGHTS)}, or name the file")
    return found or steps[-1]


def relinked(path: Path) -> Path | None:
    """Return a file, or the file beside it that a broken link names, as of a folder that was copied; else None."""
    if path.is_symlink() and not path.exists():
        path = path.with_name(os.path.basename(os.readlink(path)))
    return path if path.is_file() else None


def csv_of(records: list[dict], columns: Sequence[str] | None = None) -> str:
    """Return all records as one table. By default its columns are the fields of all records, in order of appearance."""
    columns = columns or list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in record.items()} for record in records)
    return text.getvalue()


def write_csv(path: Path, records: list[dict], columns: Sequence[str] | None = None) -> None:
    """Write the table of `csv_of`."""
    write_beside(path, lambda part: part.write_text(csv_of(records, columns), encoding="utf-8"))


def unwritten(path: Path, error: Exception) -> UserError:
    """Return the error for a file that cannot be written; torch reports a full disk only as "unexpected pos"."""
    return UserError(
        f"{path} cannot be written ({first_line(error)}): is the disk full? Make room; the last checkpoint is intact, "
        "and the same command resumes from it"
    )
