"""Where a source's files are, how many samples it has, and which of them are held out.

Imported while Snakemake parses the Snakefile: no torch, no pandas, no decoding.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from fvlm.config.schema import Source, Study
from fvlm.data.readers import READERS, count_rows, files_of, tables
from fvlm.errors import UserError

COUNTED_BYTES = 64 << 20  # tables up to this size are counted for a plan; of Parquet only the number is read


def source_folder(source: Source, results: str) -> Path:
    """The folder with the source's media files and its table."""
    if source.reader == "demo":
        return Path(results) / "corpus" / source.name
    if source.path is None:
        raise UserError(f"config/sources.yaml: source {source.name!r} has no path; say where its files are")
    return Path(source.path).parent if source.reader == "video2dataset" else Path(source.path)


def table_of(source: Source) -> str:
    """The table within the folder; a wildcard or a range may name several."""
    if source.reader == "video2dataset":
        return Path(source.path or "").name
    return source.table or READERS[reader_of(source)].table


def reader_of(source: Source) -> str:
    """The reader of its files: the demo makes folders with a table."""
    return "folder" if source.reader == "demo" else source.reader


def source_table(source: Source, results: str) -> Path:
    """The table that lists the samples of a source whose reader is `folder` or `demo`."""
    return source_folder(source, results) / table_of(source)


def shard_inputs(source: Source, results: str) -> Callable[[int], list[str]]:
    """For the number of a shard the files that it depends on. Folders are listed once, here, and not for each shard.

    The table; of several tables their folders, since any may hold a shard's rows. Of video2dataset's tars it is one,
    with its .parquet if there is one.
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
    beside = tar.with_suffix(".parquet")
    return [tar, beside] if beside.exists() else [tar]


_counted = cache(count_rows)


def sample_count(source: Source, results: str) -> int:
    """Samples of the source: as declared, or counted in its tables, which must then be there.

    raises UserError if the number is neither declared nor can be counted
    """
    if source.samples is not None:
        return source.samples
    where = f"config/sources.yaml: source {source.name!r}"
    if source.reader in ("shards", "demo"):
        raise UserError(f"{where}: reader {source.reader!r} needs `samples:`, how many there are")
    folder, table = source_folder(source, results), table_of(source)
    if not folder.is_dir():
        raise UserError(
            f"{where}: path: no folder {str(folder)!r}; correct the path, or declare `samples:` if the files come later"
        )
    files = files_of(folder, table, source.reader)
    if source.reader == "video2dataset":
        costly = next((path for path in files if not path.with_suffix(".parquet").is_file()), None)
        if costly is not None:
            raise UserError(
                f"{where}: needs `samples:`: {costly} has no .parquet beside it that says how many it holds"
            )
    elif source.reader != "files":
        size = sum(path.stat().st_size for path in files if path.suffix != ".parquet")
        if size > COUNTED_BYTES:
            raise UserError(
                f"{where}: needs `samples:`: its tables have {size >> 20} MB, too much to count for each plan"
            )
    return _counted(folder, table, source.reader)


def shard_count(source: Source, study: Study) -> int:
    """Shards that the workflow makes of a source of media files."""
    if source.reader == "video2dataset":
        return len(input_tars(source))
    return -(-sample_count(source, study.results) // study.shards.samples)


def input_tars(source: Source) -> list[str]:
    """The tars that `path` of a source names: the pattern's range, or what the wildcard finds."""
    pattern = source.path or ""
    names = tables.expand_name(pattern)
    if names is not None:
        return names
    path = Path(pattern)
    found = sorted(str(p) for p in path.parent.glob(path.name)) if pattern else []
    if not found:
        raise UserError(
            f"config/sources.yaml: source {source.name!r}: path {pattern!r} names no tar; expected one such as "
            f"data/x/{{00000..00009}}.tar"
        )
    return found


def tars_of(source: Source, study: Study) -> list[str]:
    """All shards of a source, made by the workflow or finished ones."""
    if source.reader == "shards":
        return input_tars(source)
    return [f"{study.results}/shards/{source.name}/{i:05d}.tar" for i in range(shard_count(source, study))]


def ledgers_of(study: Study) -> list[str]:
    """First what became of each input file, then what the indices rejected or, of finished shards, found."""
    made = [study.sources[name] for name in study.used_sources if study.sources[name].reader != "shards"]
    shards = [Path(tar).with_suffix(".ledger.jsonl") for source in made for tar in tars_of(source, study)]
    return [*map(str, shards), *(f"{study.results}/index/{name}.ledger.jsonl" for name in study.used_sources)]


def training_count(source: Source, results: str) -> float:
    """Samples that may be trained on: without the held-out share."""
    share = source.held_out if isinstance(source.held_out, float) else 0.0
    return sample_count(source, results) * (1 - share)
