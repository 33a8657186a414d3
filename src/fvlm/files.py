"""Write beside, then rename: a reader sees the old file or the whole new one, never a part."""

import json
import os
from collections.abc import Callable
from pathlib import Path


def write_beside(path: Path | str, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file in the same folder, flush it to disk and rename it to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(beside)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path | str, content: object) -> None:
    write_beside(path, lambda beside: beside.write_text(json.dumps(content, indent=1) + "\n"))
