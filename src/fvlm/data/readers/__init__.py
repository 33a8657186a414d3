"""Rows of a source, whatever form its dataset is published in: `reader:` of config/sources.yaml chooses the reader.

A dataset's reader is a function of its own name in one of the modules below; it turns one record of a table into a
`Sample`. Imported while Snakemake parses the Snakefile: those modules, and pyarrow, are loaded when they are used.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fvlm.data.readers import tables
from fvlm.data.readers.row import Place, Row, row_of
from fvlm.errors import UserError

__all__ = ["READERS", "Row", "count_rows", "files_of", "iterate_rows", "read_rows", "rows_per_shard"]


@dataclass(frozen=True)
class Reader:
    """Where a reader is found.

    module          of this package
    table           what its table is called unless the source says so; a wildcard or {00000..00099} names several
    rows_per_shard  a fixed number, where the shards follow the input's own division
    """

    module: str
    table: str
    rows_per_shard: int | None = None


READERS = {
    "folder": Reader("folder", "samples.jsonl"),
    "files": Reader("files", "."),
    "video2dataset": Reader("video2dataset", "*.tar", rows_per_shard=100_000),
    "webvid": Reader("captions", "results_2M_train.csv"),
    "openvid": Reader("captions", "OpenVid-1M.csv"),
    "vript": Reader("captions", "vript_captions/vript_long_videos_captions/*_caption.json"),
    "sharegpt4video": Reader("captions", "sharegpt4video_40k.jsonl"),
    "llava_video": Reader("conversations", "*/*_processed.json"),
    "vista": Reader("conversations", "*.json"),
    "cauldron": Reader("conversations", "*/*.parquet"),
    "smoltalk": Reader("conversations", "data/all/train-*.parquet"),
    "rlaif_v": Reader("conversations", "*.parquet"),
    "video_mme": Reader("questions", "videomme/test-*.parquet"),
    "mvbench": Reader("questions", "json/*.json"),
    "mlvu": Reader("questions", "json/*.json"),
    "pope": Reader("questions", "coco_pope_*.json"),
    "scienceqa": Reader("questions", "data/test-*.parquet"),
}


def _module(reader: str):
    if reader not in READERS:
        raise UserError(f"reader {reader!r} is unknown; choose one of {', '.join(READERS)}")
    return importlib.import_module(f"{__name__}.{READERS[reader].module}")


def rows_per_shard(reader: str, samples: int) -> int:
    """How far apart the numbers of the first rows of two shards are."""
    return READERS[reader].rows_per_shard or samples


def files_of(folder: Path | str, table: str | None = None, reader: str = "folder") -> list[Path]:
    """The tables, tars or, of a bare folder, the files that rows are made of; raises UserError if there are none."""
    module, folder = _module(reader), Path(folder)
    table = READERS[reader].table if table is None else table
    if hasattr(module, "files_of"):
        return module.files_of(folder, table)
    return tables.find(folder, table, getattr(module, "HINT", tables.HINT))


def iterate_rows(
    folder: Path | str, table: str | None = None, start: int = 0, stop: int | None = None, reader: str = "folder"
) -> Iterator[Row]:
    """Rows whose numbers are in [start, stop), one after the other; a bad one is kept with its `problem`.

    table       in the folder; None: what it is usually called
    raises      UserError if the folder or a table is missing or broken
    """
    module, folder = _module(reader), Path(folder)
    table = READERS[reader].table if table is None else table
    if hasattr(module, "rows"):
        yield from module.rows(folder, table, start, stop)
        return
    paths = files_of(folder, table, reader)
    if hasattr(module, "check"):
        module.check(paths[0])
    make, expand = getattr(module, reader), getattr(module, f"expand_{reader}", None)
    for number, path, record in tables.records(paths, start, stop, expand):
        yield row_of(number, make, record, Place(folder, path))


def read_rows(
    folder: Path | str, table: str | None = None, start: int = 0, stop: int | None = None, reader: str = "folder"
) -> list[Row]:
    """As `iterate_rows`, all at once."""
    return list(iterate_rows(folder, table, start, stop, reader))


def count_rows(folder: Path | str, table: str | None = None, reader: str = "folder") -> int:
    """How many rows there are, without making them; raises UserError as `iterate_rows` does."""
    module, folder = _module(reader), Path(folder)
    table = READERS[reader].table if table is None else table
    if hasattr(module, "count"):
        return module.count(folder, table)
    paths = files_of(folder, table, reader)
    if hasattr(module, "check"):
        module.check(paths[0])
    return tables.count(paths, getattr(module, f"expand_{reader}", None))
