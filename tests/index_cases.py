"""Shards and ledgers for the tests of indices."""

import json
from pathlib import Path

from fvlm.data.shards.write import open_tar


def write_tar(path: Path, samples: list[dict]) -> Path:
    """Samples as webdataset writes them; the json may be a dict or bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, open_tar(file) as writer:
        for sample in samples:
            writer.write({name: json.dumps(v).encode() if isinstance(v, dict) else v for name, v in sample.items()})
    return path


def text_shard(path: Path, *keys: str) -> Path:
    return write_tar(path, [{"__key__": key, "json": {"user": "?", "assistant": f"it is {key}"}} for key in keys])
