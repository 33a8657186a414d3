"""Numbers of each source. The ledger is read once, line by line; the rest comes from the arrays of the index."""

from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fvlm.config.schema import Source, Study
from fvlm.data.batches.order import split_held_out
from fvlm.data.shards.index import Index
from fvlm.data.shards.ledger import entries_of
from fvlm.data.shards.samples import image_suffixes
from fvlm.data_report import reference_runs
from fvlm.errors import UserError

EXAMPLES = 3  # rejected inputs that are named per reason
MEASURED = 100  # samples of a source whose JPEG sizes are measured, since the index has none


@dataclass
class Inputs:
    """A source's entries in the ledger.

    frames, duration_s  of each kept sample, in the order of the index; a duration of 0 is unknown
    examples            reason -> the first rejected inputs, as (file, message)
    """

    rejected: Counter = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    frames: array = field(default_factory=lambda: array("i"))
    duration_s: array = field(default_factory=lambda: array("f"))


@dataclass(frozen=True)
class Split:
    """Rows of a source that the study trains on, and rows that it holds out.

    partner_of      sources that name this one as their `held_out`; all its rows are held out then
    """

    train: np.ndarray
    held_out: np.ndarray
    partner_of: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """A source's numbers; arrays have one element per kept sample, in the order of the index.

    max_text_tokens     length to which the runs that use the source cut its texts; None: there is no run
    shard_bytes         (k,) of each shard
    shard_samples       (k,) usable samples of each shard
    jpeg_bytes          of the images of at most MEASURED samples
    hashes              (n, 2) uint64, perceptual hashes of the first and the middle image; 0: none
    """

    source: Source
    split: Split
    inputs: Inputs
    shards: np.ndarray
    frames: np.ndarray
    duration_s: np.ndarray
    text_tokens: np.ndarray
    answer_tokens: np.ndarray
    group: np.ndarray
    max_text_tokens: int | None
    shard_bytes: np.ndarray
    shard_samples: np.ndarray
    jpeg_bytes: np.ndarray
    hashes: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def files(self) -> int:
        """Distinct original files."""
        return len(np.unique(self.group))

    @property
    def timed(self) -> np.ndarray:
        """Which samples have a known duration, (n,) bool."""
        return self.duration_s > 0

    @property
    def hours(self) -> float:
        """Total duration of the clips. A clip of several samples counts once, one of unknown duration not at all."""
        # A file may be cut into several clips: samples of a file with equal length and images show the same clip.
        clip = np.column_stack([self.group.astype(np.uint64), self.duration_s.view(np.uint32), self.hashes])
        first = np.unique(clip, axis=0, return_index=True)[1]
        return float(self.duration_s[first].sum(dtype=np.float64)) / 3600

    @property
    def cut(self) -> int:
        """Number of samples whose text is longer than the runs take."""
        limit = self.max_text_tokens
        return 0 if limit is None else int(np.count_nonzero(self.text_tokens > limit))


def read_ledger(path: Path) -> dict[str, Inputs]:
    """Return the entries of each source in the merged ledger.

    raises      UserError if there is no ledger, or a line is no ledger entry
    """
    by_source: dict[str, Inputs] = defaultdict(Inputs)
    if not path.is_file():
        raise UserError(f"{path}: no such file; make it with `snakemake --cores all {path}`")
    for _, entry, _ in entries_of([path]):
        inputs, reason = by_source[entry["source"]], entry["reason"]
        if entry["status"] == "kept":
            inputs.frames.append(entry["frames"])
            inputs.duration_s.append(entry["duration_s"])
            continue
        inputs.rejected[reason] += 1
        if len(inputs.examples[reason]) < EXAMPLES:
            name = entry["file"] or entry["key"] or f"row {entry['row']}"
            inputs.examples[reason].append((name, entry.get("message") or ""))
    return by_source


def token_limit(name: str, study: Study) -> int | None:
    """Return the smallest `max_text_tokens` of the runs that train or validate on a source; None: there is no run."""
    runs = reference_runs(study)
    using = [run for run in runs if any(name in (s, study.sources[s].held_out) for s in run.data.sources)]
    return min((run.data.max_text_tokens for run in using or runs), default=None)


def split_of(index: Index, study: Study) -> Split:
    source = study.sources[index.source]
    used = {name for run in study.runs.values() for name in run.data.sources} | set(study.prepare)
    partner_of = tuple(name for name in study.sources if name in used and study.sources[name].held_out == source.name)
    if partner_of:
        return Split(np.zeros(0, np.int64), np.arange(len(index)), partner_of)
    share = source.held_out if isinstance(source.held_out, float) else 0.0
    return Split(*split_held_out(index, share), ())


def facts_of(index: Index, inputs: Inputs, study: Study) -> Facts:
    """Return all numbers of a source.

    raises      UserError if the index and the ledger contradict each other, or a shard is missing
    """
    frames = np.array(inputs.frames, np.int32)
    if not np.array_equal(frames, index.frames):
        raise UserError(
            f"source {index.source!r}: the ledger keeps {len(frames):,} samples with {frames.sum():,} frames, the "
            f"index has {len(index):,} with {index.frames.sum():,}, or another order; delete the source's index, and "
            "make it and the ledger again"
        )
    results = Path(study.results)
    paths = [results / str(shard) for shard in index.shards]
    return Facts(
        source=study.sources[index.source],
        split=split_of(index, study),
        inputs=inputs,
        shards=index.shards,
        frames=index.frames,
        duration_s=np.array(inputs.duration_s, np.float32),
        text_tokens=index.text_tokens,
        answer_tokens=index.answer_tokens,
        group=index.group,
        max_text_tokens=token_limit(index.source, study),
        shard_bytes=np.array([_size(path, index.source) for path in paths], np.int64),
        shard_samples=np.bincount(index.shard, minlength=len(paths)),
        jpeg_bytes=_jpeg_bytes(index, results),
        hashes=index.hashes,
    )


def _size(path: Path, source: str) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"source {source!r}: shard {path} is missing; put it back or make its index again") from error


def _jpeg_bytes(index: Index, results: Path) -> np.ndarray:
    """Return the bytes of each image of at most MEASURED samples."""
    sizes: list[int] = []
    for row in drawn(index, MEASURED):
        if index.frames[row]:
            members = index.read(row, results)
            sizes += [len(members[suffix]) for suffix in image_suffixes(members)]
    return np.array(sizes, np.int64)


def drawn(index: Index, count: int) -> np.ndarray:
    """Return at most `count` random rows, the same in every report."""
    generator = np.random.default_rng([0, *index.source.encode()])
    return np.sort(generator.choice(len(index), min(count, len(index)), replace=False))
