"""Records of a run: appended as JSON lines while it happens, written as one CSV at its end."""

import csv
import io
import json
import os
from pathlib import Path

from fvlm.errors import UserError
from fvlm.files import write_beside


class MetricsLog:
    """JSON lines, flushed one by one. On resume, lines past the checkpoint are dropped: each step stands in it once."""

    def __init__(self, path: Path, resume_step: int | None):
        self.path = path
        kept = []
        if resume_step is not None and path.exists():
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    break  # the line that was being written when the process died
                if record["step"] > resume_step:
                    break
                kept.append(line)
        write_beside(path, lambda beside: beside.write_text("".join(line + "\n" for line in kept)))
        self.file = open(path, "a")  # noqa: SIM115 - open as long as the run

    def append(self, record: dict) -> None:
        try:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        except OSError as error:
            raise unwritten(self.path, error) from error

    def sync(self) -> None:
        """Onto the disk: before a checkpoint that says these lines are there."""
        os.fsync(self.file.fileno())

    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def write_csv(path: Path, records: list[dict]) -> None:
    """All records as one table. Columns are the union of all fields, in order of appearance: none can be unknown."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in record.items()} for record in records)
    write_beside(path, lambda beside: beside.write_text(text.getvalue()))


def unwritten(path: Path, error: Exception) -> UserError:
    """The error for a file that cannot be written; torch says of a full disk no more than "unexpected pos"."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"{path} cannot be written ({reason}): is the disk full? Make room; the last checkpoint is intact, and the "
        "same command goes on from there"
    )
