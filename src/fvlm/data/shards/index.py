"""The index of a source's WebDataset tars: the place of each sample, its number of frames and of text tokens.

It works for shards of this package and for downloaded ones. A ledger beside the index lists the rejected samples; for
downloaded shards, which have no other ledger, it lists all samples. Each shard is indexed separately (`shard_index`) by
one of several processes. A stopped index resumes with the remaining shards, and only new shards are indexed later.
"""

import argparse
import json
import os
import sys
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
from fvlm.data.progress import Progress
from fvlm.data.shards import ledger
from fvlm.data.shards.arrays import open_arrays, save_arrays
from fvlm.data.shards.kept import forget
from fvlm.data.shards.shard_index import COLUMNS, Part, Work, index_shard, tokenizer_digest
from fvlm.data.shards.tar import read_sample
from fvlm.data.sources import tars_of
from fvlm.errors import UserError
from fvlm.files import write_beside


@dataclass(frozen=True)
class Index:
    """One row per usable sample of a source; arrays have length n unless stated otherwise.

    shards          (k,) paths of the tars, relative to the results folder or absolute
    shard           int32, position in `shards`
    offset, length  int64, bytes of the sample's members with their headers
    frames          int32, number of images; 0 for text
    text_tokens     int32, tokens of the whole chat, before any cut; for a preference pair with the chosen answer
    answer_tokens   int32, those of the answers
    question_tokens int32, tokens before the header of the first answer; 0 if another header precedes it
    rejected_tokens int32, tokens of the whole chat with the rejected answer; 0 if there is none
    group           int64, evenly spread over [0, 2^63): a hash of the original video, else of the file, else of the
                    first image; equal for samples that are held out together
    hashes          (n, 2) uint64, perceptual hashes of the first and the middle image; 0: none, or a flat one
    keys            unique names; `tar/key` if several tars have the same keys
    kind, source    one name each
    tokenizer       digest of the tokenizer that counted the tokens
    rejected        number of rejected samples
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

    def file_of(self, row: int, root: Path) -> Path:
        """The tar of a sample. `root` is the results folder."""
        return root / str(self.shards[self.shard[row]])

    def read(self, row: int, root: Path) -> dict[str, bytes]:
        """Return the content of a sample's members by suffix; raises UserError like `read_sample`."""
        place = int(self.offset[row]), int(self.length[row])
        return read_sample(self.file_of(row, root), *place, str(self.keys[row]))


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
    """Index the tars of a source into `out` (.npz), with a ledger of the rejected samples in `ledger_of(out)`.

    prompt      as in `sample_text`
    root        results folder; shards inside it are stored relative to it, others absolute
    processes   number of processes; the result does not depend on it
    max_reject  largest share of the source's inputs that its shards and its index may reject together
    foreign     the shards were downloaded: all of their images are checked, and the ledger lists the kept samples too
    raises      UserError if there is no shard, a tar is damaged, a key occurs twice, or too many samples are rejected
    """
    if not shards:
        raise UserError(f"source {source!r}: no shard, expected at least one; correct its `path` or `table`")
    digest = tokenizer_digest(tokenizer_folder)
    work = Work(source, kind, prompt, tokenizer_folder, digest, root, out.with_suffix(""), foreign)
    progress, parts = Progress(f"index {source}", len(shards), "shards"), []
    for part in _parts_of(shards, work, processes):
        parts.append(part)
        progress.step()
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
        key = str(keys[counts.argmax()])
        raise UserError(f"source {source!r}: key {key!r} is in its shards more than once; make the keys unique")
    _write_ledger(parts, ledger_of(out))
    save_arrays(out, {field.name: getattr(index, field.name) for field in fields(Index)})
    _remove_others({work.part_of(shard) for shard in shards}, work.parts)
    return index


def _parts_of(shards: list[Path], work: Work, processes: int) -> Iterator[Part]:
    """The index of each shard, in order; of several errors, the one of the first shard is raised."""
    if min(processes, len(shards)) <= 1:
        yield from (index_shard(shard, work) for shard in shards)
        return
    with ProcessPoolExecutor(min(processes, len(shards)), get_context("spawn"), initializer=_one_thread) as pool:
        try:
            yield from pool.map(partial(index_shard, work=work), shards)
        except BrokenProcessPool as error:
            raise UserError(
                f"source {work.source!r}: a process of its index was killed, perhaps because memory is low; run `fvlm "
                "index` again with fewer --processes, it resumes"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _check_rejects(
    source: str, shards: list[Path], parts: list[Part], work: Work, out: Path, max_reject: float
) -> None:
    """Raise UserError, and write the ledger as `{ledger}.rejected`, if shards and index rejected too many inputs."""
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
    """Write all entries, with row numbers of the whole source."""

    def write(beside: Path) -> None:
        before = 0
        with beside.open("w", encoding="utf-8") as file:
            for part in parts:
                for entry in part.entries():
                    file.write(json.dumps(entry | {"row": before + entry["row"]}, ensure_ascii=False) + "\n")
                before += len(part.columns["keys"]) + part.rejected.total()

    write_beside(path, write)


def _remove_others(used: set[Path], folder: Path) -> None:
    """Delete the parts of shards that no longer belong to the source."""
    for part in set(folder.glob("*.npz")) - used:
        part.unlink(missing_ok=True)


def ledger_of(index: Path) -> Path:
    return index.with_suffix(".ledger.jsonl")


def load_index(path: Path | str) -> Index:
    """Read an index; raises UserError if it is missing or not an index."""
    try:
        with open_arrays(path) as stored:
            values = {field.name: stored[field.name] for field in fields(Index)}
            _check_columns(values)
    except KeyError as error:
        raise UserError(
            f"{path}: an index of another version ({error}); make it again with `fvlm index`, or delete it, and "
            "Snakemake makes it again"
        ) from error
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no index ({error}); make it with `fvlm index`") from error
    values |= {name: str(values[name]) for name in ("kind", "source", "tokenizer")}
    return Index(**values | {"rejected": int(values["rejected"])})


def _check_columns(values: dict[str, np.ndarray]) -> None:
    """Raise ValueError if types and shapes are not those of an index."""
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
    """Refuse an index of another tokenizer, whose lengths would be wrong; raises UserError."""
    if index.tokenizer != tokenizer_digest(tokenizer_folder):
        raise UserError(
            f"source {index.source!r}: its index was made with another tokenizer than the one in {tokenizer_folder}; "
            f"make it again with `fvlm index {index.source}`"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="name of a source in config/sources.yaml")
    parser.add_argument("--processes", type=int, default=1, help="number of shards to index at the same time")
    parser.add_argument("--out", type=Path, help="the index to write (default: index/SOURCE.npz of the results)")
    add_study_arguments(parser)


def main(args: argparse.Namespace) -> None:
    study = study_of(args)
    source, root = study.sources[args.source], Path(study.results)
    shards = [Path(tar) for tar in tars_of(source, study)]
    missing = [str(tar) for tar in shards if not tar.is_file()]
    if missing:
        raise UserError(
            f"source {source.name!r}: {len(missing)} of its {len(shards)} shards are missing, first "
            f"{missing[0]}; correct `path` in config/sources.yaml, or copy them there"
        )
    forget(root / "shards" / source.name)
    out, tokenizer = args.out or root / "index" / f"{source.name}.npz", root / "tokenizer"
    index = write_index(
        shards, out, source.name, source.kind, tokenizer, source.prompt, root, args.processes, source.max_reject,
        foreign=source.reader == "shards",
    )  # fmt: skip
    listed = f", listed in {ledger_of(out)}" if index.rejected else ""
    print(f"index {source.name}: {len(index)} samples, {index.rejected} rejected{listed}", file=sys.stderr)
