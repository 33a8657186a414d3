"""Index WebDataset tars: where each sample lies, how many frames and text tokens it has.

Works on the shards of this package and on finished ones from elsewhere; a sample is the raw bytes of its
members, so a loader reads it with one read. A ledger beside the index lists what was left out, and all samples of
shards from elsewhere, which no other ledger knows. Each shard is indexed for itself (`shard_index`), by several
processes; a stopped index goes on with the shards that are left, and a new shard costs no more than itself.
"""

import argparse
import json
import os
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.data.shards import ledger
from fvlm.data.shards.arrays import open_arrays, save_arrays
from fvlm.data.shards.kept import forget
from fvlm.data.shards.shard_index import COLUMNS, Part, Work, index_shard, read_part, tokenizer_digest
from fvlm.data.sources import tars_of
from fvlm.errors import UserError
from fvlm.files import write_beside

REPORT_S = 10  # seconds between two lines of progress


@dataclass(frozen=True)
class Index:
    """One row per usable sample of a source; every array has length n unless it says otherwise.

    shards          (k,) paths of the tars, relative to the results folder or absolute
    shard           int32, position in `shards`
    offset, length  int64, bytes: the sample's members with their headers
    frames          int32, images; 0 for text
    text_tokens     int32, of the whole chat, before any cut; of a preference pair with the chosen answer
    answer_tokens   int32, of these the ones the assistant says
    question_tokens int32, text tokens before the header of the first answer; 0 where its header is another
    rejected_tokens int32, of the whole chat with the rejected answer; 0 where there is none
    group           int64, the same for samples of the same original video, or else file (of the same first image,
                    where neither is named), evenly spread over [0, 2^63)
    hashes          (n, 2) uint64, perceptual hashes of the first and the middle image; 0: none, or a flat one
    keys            names, unique within the source: `tar/key` where finished tars begin again with the same keys
    kind, source    one name each
    tokenizer       digest of the tokenizer that the text was counted with
    rejected        samples that were left out
    """

    shards: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    frames: np.ndarray
    text_tokens: np.ndarray
    answer_tokens: np.ndarray
    question_tokens: np.ndarray
    rejected_tokens: np.ndarray
    group: np.ndarray
    hashes: np.ndarray
    keys: np.ndarray
    kind: str
    source: str
    tokenizer: str
    rejected: int

    def __len__(self) -> int:
        return len(self.keys)


def write_index(
    shards: list[Path],
    out: Path,
    source: str,
    kind: str,
    tokenizer_folder: Path,
    prompt: str,
    root: Path,
    processes: int = 1,
    max_reject: float = 1.0,
    foreign: bool = False,
) -> Index:
    """Index the tars of a source into `out` (npz) and, beside it, a ledger named `{source}.ledger.jsonl`.

    The ledger lists every sample that was left out.

    prompt      as in `sample_text`
    root        results folder; a shard inside it is stored relative to it, any other absolute
    processes   that index shards at the same time; the result does not depend on it
    max_reject  largest share of the source's inputs that may be rejected, by its shards' ledgers or here
    foreign     the shards were made elsewhere: all of their images are checked, and the ledger lists the kept samples
                too, as the ledgers of those made here do already
    raises      UserError for no shard at all, a damaged tar, a key that occurs twice, or too much that was rejected
    """
    if not shards:
        raise UserError(f"source {source!r}: found no shard, expected at least one; correct its path or table")
    digest = tokenizer_digest(tokenizer_folder)
    work = Work(source, kind, prompt, tokenizer_folder, digest, root, out.with_suffix(""), foreign)
    _make_parts(shards, work, processes)
    parts = [read_part(work.part_of(shard)) for shard in shards]
    if max_reject < 1:
        _check_rejects(source, shards, parts, work, out, max_reject)
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in COLUMNS}
    counts = [len(part.columns["keys"]) for part in parts]
    if foreign and len(np.unique(columns["keys"])) < sum(counts):
        stems = np.repeat([shard.stem for shard in shards], counts)
        columns["keys"] = np.char.add(np.char.add(stems, "/"), columns["keys"])
    index = Index(
        shards=np.array([work.name_of(shard) for shard in shards], np.str_),
        shard=np.repeat(np.arange(len(shards), dtype=np.int32), counts),
        kind=kind, source=source, tokenizer=work.tokenizer,
        rejected=sum(part.rejected.total() for part in parts), **columns,
    )  # fmt: skip
    keys, counts = np.unique(index.keys, return_counts=True)
    if len(keys) < len(index):
        twice = str(keys[counts.argmax()])
        raise UserError(f"source {source!r}: key {twice!r} is in its shards more than once; make keys unique")
    _write_ledger(parts, ledger_of(out))
    save_arrays(out, {field.name: getattr(index, field.name) for field in fields(Index)})
    _remove_others({work.part_of(shard) for shard in shards}, work.parts)
    return index


def _make_parts(shards: list[Path], work: Work, processes: int) -> None:
    """Index each shard that has no current part; of several errors the first shard's is raised."""
    start = last = time.monotonic()
    for done, _ in enumerate(_indexed(shards, work, processes), 1):
        now = time.monotonic()
        if now - last > REPORT_S and done < len(shards):
            last = now
            print(
                f"index {work.source}: {done}/{len(shards)} shards in {now - start:.0f} s", file=sys.stderr, flush=True
            )


def _indexed(shards: list[Path], work: Work, processes: int) -> Iterator[None]:
    if min(processes, len(shards)) <= 1:
        yield from (index_shard(shard, work) for shard in shards)
        return
    with ProcessPoolExecutor(min(processes, len(shards)), get_context("spawn"), initializer=_alone) as pool:
        try:
            yield from pool.map(partial(index_shard, work=work), shards)
        except BrokenProcessPool as error:
            raise UserError(
                f"source {work.source!r}: a process that indexed its shards was ended, perhaps for lack of memory; "
                "run it again with fewer processes, what is done is kept"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _alone() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread in each process


def _check_rejects(
    source: str, shards: list[Path], parts: list[Part], work: Work, out: Path, max_reject: float
) -> None:
    """Raise UserError, and leave the ledger as `{ledger}.rejected`, if shards and index left out too much together."""
    counts: Counter = Counter()
    for shard, part in zip(shards, parts, strict=True):
        counts += part.rejected + Counter(kept=len(part.columns["keys"]))
        beside = shard.with_suffix(".ledger.jsonl")
        if beside.is_file() and not work.foreign:
            entries = map(json.loads, beside.read_bytes().splitlines())
            counts += Counter(entry["reason"] for entry in entries if entry["reason"])
    where = ledger_of(out).with_name(ledger_of(out).name + ".rejected")
    try:
        ledger.check_rejects(source, counts, max_reject, f"{where} and the ledgers beside its shards")
    except UserError:
        _write_ledger(parts, where)
        raise
    where.unlink(missing_ok=True)


def _write_ledger(parts: list[Part], path: Path) -> None:
    """All lines, their rows counted through the whole source."""

    def write(beside: Path) -> None:
        before = 0
        with beside.open("w", encoding="utf-8") as file:
            for part in parts:
                for entry in part.entries():
                    file.write(json.dumps(entry | {"row": before + entry["row"]}, ensure_ascii=False) + "\n")
                before += len(part.columns["keys"]) + part.rejected.total()

    write_beside(path, write)


def _remove_others(used: set[Path], folder: Path) -> None:
    """Parts of shards that are no longer the source's."""
    for part in set(folder.glob("*.npz")) - used:
        part.unlink(missing_ok=True)


def ledger_of(index: Path) -> Path:
    return index.with_suffix(".ledger.jsonl")


def load_index(path: Path | str) -> Index:
    """Read what `write_index` wrote; raises UserError if it is not there or not an index."""
    try:
        with open_arrays(path) as stored:
            values = {field.name: stored[field.name] for field in fields(Index)}
            _check_columns(values)
    except KeyError as error:
        raise UserError(
            f"{path}: an index of another version ({error}); delete it, and Snakemake makes it again, or make it "
            "again with `fvlm index`"
        ) from error
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no index ({error}); make it with `fvlm index`") from error
    values |= {name: str(values[name]) for name in ("kind", "source", "tokenizer")}
    return Index(**values | {"rejected": int(values["rejected"])})


def _check_columns(values: dict[str, np.ndarray]) -> None:
    """Raise ValueError where a row, or what holds for all of them, is not what an index has there."""
    rows = len(values["keys"]) if values["keys"].ndim else -1
    for name, kind in {**COLUMNS, "shard": np.int32}.items():
        found = values[name]
        if found.dtype.kind != np.dtype(kind).kind or found.shape != ((rows, 2) if name == "hashes" else (rows,)):
            raise ValueError(f"{name}: {found.shape} of {found.dtype} for {rows} keys")
    if rows and not 0 <= values["shard"].min() <= values["shard"].max() < values["shards"].size:
        raise ValueError(f"shard: up to {values['shard'].max()} of {values['shards'].size}")
    for name in ("kind", "source", "tokenizer", "rejected"):
        if values[name].shape:
            raise ValueError(f"{name}: {values[name].shape}, one value expected")


def check_tokenizer(index: Index, tokenizer_folder: Path | str) -> None:
    """Refuse an index whose text was counted with another tokenizer: its batches would not fit their budget."""
    if index.tokenizer != tokenizer_digest(tokenizer_folder):
        raise UserError(
            f"source {index.source!r}: its index counts the tokens of another tokenizer than the one in "
            f"{tokenizer_folder}; make it again with `fvlm index {index.source}`"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="name of a source in config/sources.yaml")
    parser.add_argument("--processes", type=int, default=1, help="index so many shards at the same time")
    add_study_arguments(parser)


def main(args: argparse.Namespace) -> None:
    study = study_of(args)
    source, root = study.sources[args.source], Path(study.results)
    shards = [Path(tar) for tar in tars_of(source, study)]
    missing = [str(tar) for tar in shards if not tar.is_file()]
    if missing:
        raise UserError(
            f"source {source.name!r}: {len(missing)} of its {len(shards)} shards are missing, first "
            f"{missing[0]}; correct `path` in config/sources.yaml or put them there"
        )
    forget(root / "shards" / source.name)
    out, tokenizer = root / "index" / f"{source.name}.npz", root / "tokenizer"
    index = write_index(
        shards, out, source.name, source.kind, tokenizer, source.prompt, root, args.processes, source.max_reject,
        foreign=source.reader == "shards",
    )  # fmt: skip
    listed = f", listed in {ledger_of(out)}" if index.rejected else ""
    print(f"index {source.name}: {len(index)} samples, {index.rejected} rejected{listed}", file=sys.stderr)
