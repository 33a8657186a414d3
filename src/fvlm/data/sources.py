"""The files of a source, its shards, and its number of samples.

Snakemake imports this module while it parses the Snakefile, so it loads no torch, no pandas and no decoder.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from fvlm.config.schema import Source, Study
from fvlm.data.readers import READERS, count_rows, files_of, tables
from fvlm.errors import UserError

COUNTED_BYTES = 64 << 20  # rows of larger tables are not counted for a plan; Parquet stores their number


def source_folder(source: Source, results: str) -> Path:
    """Return the folder with the source's media files and its table; raises UserError if it has no path."""
    if source.reader == "demo":
        return Path(results) / "corpus" / source.name
    if source.path is None:
        raise UserError(f"config/sources.yaml: source {source.name!r} has no `path`; set it to the folder of its files")
    return Path(source.path).parent if source.reader == "video2dataset" else Path(source.path)


def table_of(source: Source) -> str:
    """Return the name of the table in the folder; a wildcard or a range may name several."""
    if source.reader == "video2dataset":
        return Path(source.path or "").name
    return source.table or READERS[reader_of(source)].table


def tables_of(source: Source, results: str) -> list[str]:
    """Return the tables of a source; raises UserError if the user has none. Those of the demo are made."""
    if source.reader == "demo":
        return [str(source_table(source, results))]
    return [str(path) for path in files_of(source_folder(source, results), table_of(source), reader_of(source))]


def reader_of(source: Source) -> str:
    """Return the reader of the source's files; the demo writes folders with a table."""
    return "folder" if source.reader == "demo" else source.reader


def source_table(source: Source, results: str) -> Path:
    """Return the path of the table of a source whose reader is `folder` or `demo`."""
    return source_folder(source, results) / table_of(source)


def shard_inputs(source: Source, results: str) -> Callable[[int], list[str]]:
    """Return a function from the number of a shard to the files that the shard depends on.

    These are the table; or, if there are several tables, their folders, since each may hold rows of the shard; or one
    tar of video2dataset, with its .parquet if it exists. Folders are listed once, not for each shard.
    """
    if source.reader == "video2dataset":
        tars = [Path(tar) for tar in input_tars(source)]
        return lambda number: [str(path) for path in _with_parquet(tars[number])]
    folder, table = source_folder(source, results), table_of(source)
    if source.reader == "files":
        inputs = [str(folder)]
    elif not tables.is_pattern(table):
        inputs = [str(folder / table)]
    elif folder.is_dir():
        inputs = sorted({str(path.parent) for path in files_of(folder, table, source.reader)})
    else:
        inputs = []
    return lambda number: inputs


def _with_parquet(tar: Path) -> list[Path]:
    parquet = tar.with_suffix(".parquet")
    return [tar, parquet] if parquet.exists() else [tar]


_counted = cache(count_rows)


def sample_count(source: Source, results: str) -> int:
    """Return the number of samples of a source: declared, or counted in its tables.

    raises      UserError if it is not declared and cannot be counted
    """
    if source.samples is not None:
        return source.samples
    where = f"config/sources.yaml: source {source.name!r}"
    if source.reader in ("shards", "demo"):
        raise UserError(f"{where}: reader {source.reader!r} needs `samples:`, the number of its samples")
    folder, table = source_folder(source, results), table_of(source)
    if not folder.is_dir():
        raise UserError(
            f"{where}: path: no folder {str(folder)!r}; correct the path, or set `samples:` if the files come later"
        )
    files = files_of(folder, table, source.reader)
    if source.reader == "video2dataset":
        uncounted = next((path for path in files if not path.with_suffix(".parquet").is_file()), None)
        if uncounted is not None:
            raise UserError(f"{where}: needs `samples:`, since {uncounted} has no .parquet beside it to count its rows")
    elif source.reader != "files":
        size = sum(path.stat().st_size for path in files if path.suffix != ".parquet")
        if size > COUNTED_BYTES:
            raise UserError(
                f"{where}: needs `samples:`, since its tables have {size >> 20} MiB, too much to count for each plan"
            )
    return _counted(folder, table, source.reader)


def shard_count(source: Source, study: Study) -> int:
    """Return the number of shards that the workflow makes from a source of media files."""
    if source.reader == "video2dataset":
        return len(input_tars(source))
    return -(-sample_count(source, study.results) // study.shards.samples)


def has_tars(source: Source) -> bool:
    """Whether a source's `path` names a tar: a wildcard may match none."""
    return bool(_tars(source.path or ""))


def _tars(pattern: str) -> list[str]:
    path = Path(pattern)
    tars = tables.expand_name(pattern)
    if tars is None:
        tars = sorted(str(tar) for tar in path.parent.glob(path.name)) if pattern else []
    return tars


def input_tars(source: Source) -> list[str]:
    """Return the tars of a source's `path`: those of its range, or those that match its wildcard."""
    pattern = source.path or ""
    tars = _tars(pattern)
    if not tars:
        raise UserError(
            f"config/sources.yaml: source {source.name!r}: path {pattern!r} names no tar; expected one such as "
            f"data/x/{{00000..00009}}.tar"
        )
    return tars


def tars_of(source: Source, study: Study) -> list[str]:
    """Return all shards of a source, made by the workflow or downloaded."""
    if source.reader == "shards":
        return input_tars(source)
    return [f"{study.results}/shards/{source.name}/{i:05d}.tar" for i in range(shard_count(source, study))]


def ledgers_of(study: Study) -> list[str]:
    """Return the ledgers of a study: of the shards that it makes, then of the indices."""
    made = [study.sources[name] for name in study.used_sources if study.sources[name].reader != "shards"]
    shards = [Path(tar).with_suffix(".ledger.jsonl") for source in made for tar in tars_of(source, study)]
    return [*map(str, shards), *(f"{study.results}/index/{name}.ledger.jsonl" for name in study.used_sources)]


def training_count(source: Source, results: str) -> float:
    """Return the number of samples without the held-out share."""
    share = source.held_out if isinstance(source.held_out, float) else 0.0
    return sample_count(source, results) * (1 - share)
