"""Rows of a source in the form its dataset is published in; `reader:` in config/sources.yaml names the form.

The reader of a dataset is a function with the dataset's name in one of the modules here; it turns one record of a table
into a `Sample`. Snakemake imports this package while it parses the Snakefile, so these modules and pyarrow are loaded
only when they are used.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fvlm.data.readers import tables
from fvlm.data.readers.row import Row, row_of
from fvlm.errors import UserError

__all__ = ["READERS", "Row", "count_rows", "files_of", "iterate_rows", "read_rows", "rows_per_shard", "tables"]


@dataclass(frozen=True)
class Reader:
    """The place of a reader.

    module          module of this package
    table           default name of the table; a wildcard or {00000..00099} names several
    rows_per_shard  a fixed number, if each input file becomes one shard
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


def _open(folder: Path | str, table: str | None, reader: str):
    """The reader's module, the folder as a path, and the name of the table."""
    if reader not in READERS:
        raise UserError(f"reader {reader!r} is unknown; choose one of {', '.join(READERS)}")
    module = importlib.import_module(f"{__name__}.{READERS[reader].module}")
    return module, Path(folder), READERS[reader].table if table is None else table


def _tables(module, folder: Path, table: str) -> list[Path]:
    """The tables, after the module's check of their columns."""
    paths = tables.find(folder, table, getattr(module, "HINT", tables.HINT))
    if hasattr(module, "check"):
        module.check(paths[0])
    return paths


def rows_per_shard(reader: str, samples: int) -> int:
    """Distance between the numbers of the first rows of two consecutive shards."""
    return READERS[reader].rows_per_shard or samples


def files_of(folder: Path | str, table: str | None = None, reader: str = "folder") -> list[Path]:
    """Return the source's tables, its tars or, of a bare folder, all files; raises UserError if there are none."""
    module, folder, table = _open(folder, table, reader)
    if hasattr(module, "files_of"):
        return module.files_of(folder, table)
    return tables.find(folder, table, getattr(module, "HINT", tables.HINT))


def iterate_rows(
    folder: Path | str, table: str | None = None, start: int = 0, stop: int | None = None, reader: str = "folder"
) -> Iterator[Row]:
    """Rows whose numbers are in [start, stop), in order; a bad row has a `problem`.

    table       name inside the folder; None: the reader's default
    raises      UserError if the folder or a table is missing or broken
    """
    module, folder, table = _open(folder, table, reader)
    if hasattr(module, "rows"):
        yield from module.rows(folder, table, start, stop)
        return
    make, expand = getattr(module, reader), getattr(module, f"expand_{reader}", None)
    for number, path, record in tables.records(_tables(module, folder, table), start, stop, expand):
        yield row_of(number, make, record, folder, path)


def read_rows(
    folder: Path | str, table: str | None = None, start: int = 0, stop: int | None = None, reader: str = "folder"
) -> list[Row]:
    """The rows of `iterate_rows` as a list."""
    return list(iterate_rows(folder, table, start, stop, reader))


def count_rows(folder: Path | str, table: str | None = None, reader: str = "folder") -> int:
    """Return the number of rows without making them; raises UserError like `iterate_rows`."""
    module, folder, table = _open(folder, table, reader)
    if hasattr(module, "count"):
        return module.count(folder, table)
    return tables.count(_tables(module, folder, table), getattr(module, f"expand_{reader}", None))
