"""The order of training samples: a pure function of (seed, epoch, position), fixed before the run starts.

It does not depend on the number of processes that read or train, so a stopped run resumes with the next sample.
"""

from dataclasses import dataclass

import numpy as np

from fvlm.data.shards.index import Index
from fvlm.errors import UserError

KINDS = ("video", "image", "text", "preference")
PARTS = 10_000  # shares are exact to a hundredth of a percent

FEW = 10_000  # groups of a source; of so many, chance alone holds out a share to a tenth of it


@dataclass(frozen=True)
class Order:
    """`n` samples in training order; sample i is row `row[i]` of source `source[i]`.

    A preference pair is one sample; its positions and text tokens are the sums of both halves.

    source, row     (n,) int64
    positions       (n,) int64, visual positions in training, including static frames; 0: no frame is shown
    text_tokens     (n,) int64, after the cut at max_text_tokens
    rejected_tokens (n,) int64, the part of text_tokens in the rejected half of a pair; 0 for other samples
    question_first  (n,) bool, True: the question comes before the frames
    stream          (n,) int64, part of the mixture: a kind, or a weighted source of a kind
    """

    source: np.ndarray
    row: np.ndarray
    positions: np.ndarray
    text_tokens: np.ndarray
    rejected_tokens: np.ndarray
    question_first: np.ndarray
    stream: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def at(self, places: np.ndarray | slice) -> "Order":
        """Return the samples at these places, in this order."""
        return Order(*(getattr(self, name)[places] for name in self.__dataclass_fields__))

    def first(self, n: int) -> "Order":
        return self.at(slice(n))

    def sequences(self) -> tuple[np.ndarray, np.ndarray]:
        """Visual positions and text tokens of each sequence of the language model; a pair is two sequences."""
        pair = self.rejected_tokens > 0
        positions, chosen = self.positions // (1 + pair), self.text_tokens - self.rejected_tokens
        return np.append(positions, positions[pair]), np.append(chosen, self.rejected_tokens[pair])


def draw_order(
    indices: list[Index],
    rows: list[np.ndarray],
    share: dict[str, float],
    weights: dict[str, float],
    static_frames: int,
    max_tokens: int,
    seed: int,
    epoch: int = 0,
    **options,
) -> Order:
    """Return the longest order with this mixture in which no sample comes twice.

    The mixture holds in every window: if the shares are whole percents, any 100 samples in a row have exactly these.

    indices     one per source
    rows        rows of each index that may be trained on
    share       kind -> share of the samples
    weights     source -> weight among the sources of its kind; a kind without weights draws its samples evenly
    epoch       another epoch is another order of the same samples
    options     question_first, frames_seen and pairs, as in `_lengths`
    raises      UserError if a kind with a share has no sample, or a sample is no pair
    """
    kinds = [kind for kind in KINDS if share.get(kind, 0) > 0]
    drawn = [_draw_kind(kind, indices, rows, weights, [seed, epoch]) for kind in kinds]
    for kind, (source, _, _) in zip(kinds, drawn, strict=True):
        if not len(source):
            raise UserError(
                f"data.share has {share[kind]:.0%} {kind} samples, but the run's sources hold none; check their ledgers"
            )
    kind_of = interleave([share[kind] for kind in kinds], [len(source) for source, _, _ in drawn])
    source, row, stream = columns = np.zeros((3, len(kind_of)), np.int64)
    for k, drawn_columns in enumerate(drawn):
        places = np.flatnonzero(kind_of == k)
        columns[:, places] = [column[: len(places)] for column in drawn_columns]
    lengths = _lengths(indices, source, row, static_frames, max_tokens, [seed, epoch], **options)
    return Order(source, row, *lengths, stream)


def interleave(shares: list[float], counts: list[int]) -> np.ndarray:
    """Return which queue is next, as evenly as possible, until the next queue is empty: (n,) int64.

    Item j of a queue with share s belongs at (j + 1/2) / s. After PARTS items, or fewer if the shares have a common
    divisor, the pattern repeats, so every window of this length has exactly the shares.

    counts      items of each queue
    """
    parts = _whole_parts(shares)
    # Item j of p is at (2 j + 1) / 2 p of a period of length 1; of equal places, the earlier queue is first.
    place = np.concatenate([(2 * np.arange(p) + 1) / (2 * p) for p in parts])
    queue = np.repeat(np.arange(len(parts)), parts)
    pattern = queue[np.lexsort((queue, place.round(12)))]
    period, length = len(pattern), None
    for k, (part, count) in enumerate(zip(parts, counts, strict=True)):
        rounds, rest = divmod(count, part)  # item `count`, counted from 0, does not exist
        end = rounds * period + int(np.flatnonzero(pattern == k)[rest])
        length = end if length is None else min(length, end)
    return np.resize(pattern, length) if length else np.zeros(0, np.int64)


def _whole_parts(shares: list[float]) -> np.ndarray:
    """Shares as whole numbers of at least 1, with the sum PARTS, divided by their greatest common divisor."""
    exact = np.array(shares) / np.sum(shares) * PARTS
    parts = np.maximum(1, np.floor(exact + 1e-6).astype(np.int64))
    for k in np.argsort(parts - exact, kind="stable")[: max(0, PARTS - parts.sum())]:
        parts[k] += 1
    return parts // np.gcd.reduce(parts)


def _draw_kind(
    kind: str, indices: list[Index], rows: list[np.ndarray], weights: dict[str, float], seed: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source, row and stream of a kind's samples, in drawn order."""
    members = [i for i, index in enumerate(indices) if index.kind == kind]
    weighted = [weights[indices[i].source] for i in members if indices[i].source in weights]
    first = KINDS.index(kind)
    if not weighted:
        source = np.concatenate([np.zeros(0, np.int64), *(np.full(len(rows[i]), i) for i in members)])
        row = np.concatenate([np.zeros(0, np.int64), *(rows[i] for i in members)])
        shuffled = np.random.default_rng([*seed, first]).permutation(len(row))
        return source[shuffled], row[shuffled], np.full(len(row), first)
    of_source = interleave(weighted, [len(rows[i]) for i in members])
    source, row = np.array(members)[of_source], np.zeros(len(of_source), np.int64)
    for i in members:
        places = np.flatnonzero(source == i)
        row[places] = np.random.default_rng([*seed, first, i]).permutation(rows[i])[: len(places)]
    return source, row, len(KINDS) + source


def in_file_order(
    indices: list[Index],
    rows: list[np.ndarray],
    static_frames: int,
    max_tokens: int,
    **options,
) -> Order:
    """Return the given rows, source after source, for evaluation; arguments as in `draw_order`, with a fixed seed."""
    empty = np.zeros(0, np.int64)
    source = np.concatenate([empty, *(np.full(len(r), i) for i, r in enumerate(rows))])
    row = np.concatenate([empty, *rows]).astype(np.int64)
    lengths = _lengths(indices, source, row, static_frames, max_tokens, [0, 0], **options)
    return Order(source, row, *lengths, source)


def _lengths(
    indices: list[Index], source: np.ndarray, row: np.ndarray, static_frames: int, max_tokens: int, seed: list[int],
    question_first: float = 0.0, frames_seen: bool = True, pairs: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Columns `positions`, `text_tokens`, `rejected_tokens` and `question_first` of an order.

    question_first  share of the samples with frames whose question comes before the frames; the choice depends only on
                the seed, not on the mixture
    frames_seen False: for a model without visual tokens; no sample has positions
    pairs       every sample is a preference pair
    """
    positions, tokens, rejected = np.zeros((3, len(row)), np.int64)
    first = np.zeros(len(row), bool)
    for i, index in enumerate(indices):
        places = np.flatnonzero(source == i)
        rows = row[places]
        frames = index.frames[rows]
        still = index.kind in ("image", "preference")
        positions[places] = np.where(frames == 1, static_frames, frames) if still else frames
        tokens[places] = np.minimum(index.text_tokens[rows], max_tokens)
        if pairs:
            _check_pairs(index, rows)
            rejected[places] = np.minimum(index.rejected_tokens[rows], max_tokens)
        # Drawn for all rows of the index, so that the choice for a row does not depend on the others.
        first[places] = np.random.default_rng([*seed, len(KINDS), i]).random(len(index))[rows] < question_first
    positions *= (2 if pairs else 1) if frames_seen else 0
    return positions, tokens + rejected, rejected, first & (positions > 0)


def _check_pairs(index: Index, rows: np.ndarray) -> None:
    single = rows[index.rejected_tokens[rows] == 0]
    if len(single):
        raise UserError(
            f"source {index.source!r}: {len(single)} of its samples, first {str(index.keys[single[0]])!r}, have no "
            "rejected answer, which data.loss 'preference' needs; remove the source from data.sources, or correct its "
            "table"
        )


def cut_to_samples(order: Order, samples: int, run: str) -> Order:
    """Return the first `samples` of an order; raises UserError if that is more than one epoch."""
    if samples > len(order):
        raise UserError(
            f"run {run!r}: train.samples is {samples:,}, but its sources hold only {len(order):,} samples in these "
            "shares, and no sample is trained on twice; lower train.samples, change data.share, or add sources"
        )
    return order.first(samples)


def cut_to_flops(order: Order, flops_of_each: np.ndarray, budget: float, run: str) -> Order:
    """Return the longest start of an order within a budget of training FLOPs; raises UserError above one epoch."""
    spent = np.cumsum(flops_of_each)
    if spent[-1] < budget:
        raise UserError(
            f"run {run!r}: its sources hold {len(order):,} samples = {spent[-1]:.3g} training FLOPs, less than the "
            f"budget of {budget:.3g}, and no sample is trained on twice; lower the budget, or add sources"
        )
    count = int(np.searchsorted(spent, budget, side="right"))
    if count == 0:
        raise UserError(
            f"run {run!r}: one sample costs {spent[0]:.3g} training FLOPs, more than the budget of {budget:.3g}; "
            "raise the budget"
        )
    return order.first(count)


def split_held_out(index: Index, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows for training and the held-out rows; all samples of a group are on the same side.

    The groups with the smallest hashes are held out. Of few groups these are `share`, rounded, and at least one of two
    or more; of many, those below a fixed limit, so that no group changes sides when files are added.
    """
    chance = index.group % 1_000_000  # the group is a hash, so this is as good as a random number
    limit = round(share * 1_000_000)
    if share and is_ranked(index):
        groups = np.unique(index.group)
        groups = groups[np.argsort(groups % 1_000_000, kind="stable")]
        count = max(round(share * len(groups)), 1) if len(groups) > 1 else 0
        held = np.isin(index.group, groups[:count])
    else:
        held = chance < limit
    return np.flatnonzero(~held), np.flatnonzero(held)


def is_ranked(index: Index) -> bool:
    """Return whether a source has so few groups that a share of them is counted."""
    return len(index) < FEW or len(np.unique(index.group)) < FEW
