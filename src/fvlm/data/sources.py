"""Where a source's files are, how many samples it has, and which of them are held out.

Imported while Snakemake parses the Snakefile: no torch, no pandas, no decoding.
"""

import re
from functools import cache
from pathlib import Path

from fvlm.data.readers import count_rows
from fvlm.errors import UserError
from fvlm.schema import Source, Study


def source_folder(source: Source, results: str) -> Path:
    """The folder with the source's media files and its table."""
    if source.reader == "demo":
        return Path(results) / "corpus" / source.name
    if source.path is None:
        raise UserError(f"config/sources.yaml: source {source.name!r} has no path; say where its files are")
    return Path(source.path)


def source_table(source: Source, results: str) -> Path:
    """The table that lists the source's samples (CSV or JSONL)."""
    return source_folder(source, results) / source.table


_counted = cache(count_rows)


def sample_count(source: Source, results: str) -> int:
    """Samples of the source: as declared, or counted in its table, which must then be there.

    raises UserError if the number is neither declared nor can be counted
    """
    if source.samples is not None:
        return source.samples
    if source.reader != "folder":
        raise UserError(
            f"config/sources.yaml: source {source.name!r}: reader {source.reader!r} needs `samples:`, how many "
            f"there are"
        )
    folder = source_folder(source, results)
    if not folder.is_dir():
        raise UserError(
            f"config/sources.yaml: source {source.name!r}: path: no folder {str(folder)!r}; correct the path, or "
            f"declare `samples:` if the files come later"
        )
    return _counted(folder, source.table)


def shard_count(source: Source, study: Study) -> int:
    """Shards that the workflow makes of a source of media files."""
    return -(-sample_count(source, study.results) // study.shards.samples)


def foreign_tars(source: Source) -> list[str]:
    """The finished tars of a source with reader `shards`: the pattern's range, or what the wildcard finds."""
    pattern = source.path or ""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match:
        first, last = match.groups()
        return [pattern.replace(match.group(0), str(i).zfill(len(first))) for i in range(int(first), int(last) + 1)]
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
        return foreign_tars(source)
    return [f"{study.results}/shards/{source.name}/{i:05d}.tar" for i in range(shard_count(source, study))]


def training_count(source: Source, results: str) -> float:
    """Samples that may be trained on: without the held-out share."""
    share = source.held_out if isinstance(source.held_out, float) else 0.0
    return sample_count(source, results) * (1 - share)
