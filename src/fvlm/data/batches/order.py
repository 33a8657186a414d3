"""Which sample is trained on when: a pure function of (seed, epoch, position), fixed before the run starts.

It does not depend on how many processes read or train, so a run can stop anywhere and go on exactly there.
"""

from dataclasses import dataclass

import numpy as np

from fvlm.data.shards.index import Index
from fvlm.errors import UserError

KINDS = ("video", "image", "text", "preference")
PARTS = 10_000  # shares are kept to a hundredth of a percent


@dataclass(frozen=True)
class Order:
    """`n` samples in training order; sample i is row `row[i]` of source `source[i]`.

    A preference pair is one sample here; its positions and text tokens are those of both halves together.

    source, row     (n,) int64
    positions       (n,) int64, visual positions of the sample as trained (static frames counted); 0: it shows nothing
    text_tokens     (n,) int64, after the cut at max_text_tokens
    rejected_tokens (n,) int64, of these the ones of a pair's rejected half; 0 for a sample that is no pair
    question_first  (n,) bool, True: its question stands before its frames
    stream          (n,) int64, which part of the mixture a place belongs to: a kind, or a weighted source of one
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
        """The samples at some places, in that order."""
        return Order(*(getattr(self, name)[places] for name in self.__dataclass_fields__))

    def first(self, n: int) -> "Order":
        return self.at(slice(n))

    def sequences(self) -> tuple[np.ndarray, np.ndarray]:
        """Visual positions and text tokens of each sequence that the language model reads: a pair is two of them."""
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
    *,
    question_first: float = 0.0,
    frames_seen: bool = True,
    pairs: bool = False,
) -> Order:
    """The longest order that the mixture allows without showing any sample twice.

    indices     one per source
    rows        rows of each index that may be trained on
    share       kind -> share of the samples
    weights     source -> weight among the sources of its kind; a kind without any draws its samples evenly
    epoch       another one is another order of the same samples
    question_first  share of the samples with frames whose question stands before them; which ones follows from seed
                and epoch alone, whatever the mixture
    frames_seen False: for a model that sees nothing; no sample has a position
    pairs       every sample is a preference pair
    raises      UserError if a kind with a share, or a source with a weight, has no sample, or a pair half of one

    Both hold in every window: where the shares are whole percents, any 100 samples in a row have exactly theirs.
    """
    kinds = [kind for kind in KINDS if share.get(kind, 0) > 0]
    drawn = [_draw_kind(kind, indices, rows, weights, [seed, epoch]) for kind in kinds]
    for kind, (source, _, _) in zip(kinds, drawn, strict=True):
        if not len(source):
            raise UserError(
                f"data.share wants {share[kind]:.0%} {kind} samples, but the run's sources hold none; "
                "check their ledgers"
            )
    of_kind = interleave([share[kind] for kind in kinds], [len(source) for source, _, _ in drawn])
    source, row, stream = (np.zeros(len(of_kind), np.int64) for _ in range(3))
    for k, columns in enumerate(drawn):
        mine = of_kind == k
        for to, column in zip((source, row, stream), columns, strict=True):
            to[mine] = column[: np.count_nonzero(mine)]
    lengths = _lengths(indices, source, row, static_frames, max_tokens, frames_seen, pairs)
    first = _question_first(indices, source, row, question_first, [seed, epoch]) & (lengths["positions"] > 0)
    return Order(source, row, **lengths, question_first=first, stream=stream)


def interleave(shares: list[float], counts: list[int]) -> np.ndarray:
    """Which of some queues is next, as evenly as can be, until the first one that is next is empty: (n,) int64.

    counts      items of each queue; of queue k at most counts[k] are taken

    Item j of a queue with share s belongs at (j + 1/2) / s. After PARTS items, or fewer where the shares have a
    common divisor, the pattern repeats; so every window of that length holds exactly its shares.
    """
    parts = _whole_parts(shares)
    # In the period (0, 1): item j of p lies at (2 j + 1) / 2 p; ties go to the earlier queue.
    place = np.concatenate([(2 * np.arange(p) + 1) / (2 * p) for p in parts])
    queue = np.repeat(np.arange(len(parts)), parts)
    pattern = queue[np.lexsort((queue, place.round(12)))]
    period, length = len(pattern), None
    for k, (part, count) in enumerate(zip(parts, counts, strict=True)):
        rounds, rest = divmod(count, part)  # item number `count`, counted from 0, is the first that is missing
        end = rounds * period + int(np.flatnonzero(pattern == k)[rest])
        length = end if length is None else min(length, end)
    return np.resize(pattern, length) if length else np.zeros(0, np.int64)


def _whole_parts(shares: list[float]) -> np.ndarray:
    """Shares as whole numbers without a common divisor, at least 1 each; they add up to PARTS before the division."""
    exact = np.array(shares) / np.sum(shares) * PARTS
    parts = np.maximum(1, np.floor(exact + 1e-6).astype(np.int64))
    for k in np.argsort(parts - exact, kind="stable")[: max(0, PARTS - parts.sum())]:
        parts[k] += 1
    return parts // np.gcd.reduce(parts)


def _draw_kind(
    kind: str, indices: list[Index], rows: list[np.ndarray], weights: dict[str, float], seed: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source, row and stream of a kind's samples in the order in which they are drawn."""
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
        mine = source == i
        row[mine] = np.random.default_rng([*seed, first, i]).permutation(rows[i])[: np.count_nonzero(mine)]
    return source, row, len(KINDS) + source


def in_file_order(
    indices: list[Index],
    rows: list[np.ndarray],
    static_frames: int,
    max_tokens: int,
    *,
    question_first: float = 0.0,
    frames_seen: bool = True,
    pairs: bool = False,
) -> Order:
    """The given rows, source after source, for evaluation. Arguments as in `draw_order`; its seed is fixed."""
    nothing = np.zeros(0, np.int64)
    source = np.concatenate([nothing, *(np.full(len(r), i) for i, r in enumerate(rows))])
    row = np.concatenate([nothing, *rows]).astype(np.int64)
    lengths = _lengths(indices, source, row, static_frames, max_tokens, frames_seen, pairs)
    first = _question_first(indices, source, row, question_first, [0, 0]) & (lengths["positions"] > 0)
    return Order(source, row, **lengths, question_first=first, stream=source)


def _lengths(
    indices: list[Index],
    source: np.ndarray,
    row: np.ndarray,
    static_frames: int,
    max_tokens: int,
    frames_seen: bool,
    pairs: bool,
) -> dict[str, np.ndarray]:
    positions, tokens, rejected = np.zeros((3, len(row)), np.int64)
    for i, index in enumerate(indices):
        mine = source == i
        here = row[mine]
        frames = index.frames[here]
        still = index.kind in ("image", "preference")
        positions[mine] = np.where(frames == 1, static_frames, frames) if still else frames
        tokens[mine] = np.minimum(index.text_tokens[here], max_tokens)
        if pairs:
            rejected[mine] = np.minimum(index.rejected_tokens[here], max_tokens)
            _check_pairs(index, here)
    positions *= (2 if pairs else 1) if frames_seen else 0
    return {"positions": positions, "text_tokens": tokens + rejected, "rejected_tokens": rejected}


def _check_pairs(index: Index, rows: np.ndarray) -> None:
    alone = rows[index.rejected_tokens[rows] == 0]
    if len(alone):
        raise UserError(
            f"source {index.source!r}: {len(alone)} of its samples, first {str(index.keys[alone[0]])!r}, have no "
            "rejected answer, which data.loss 'preference' needs; take the source out of data.sources or mend its table"
        )


def _question_first(
    indices: list[Index], source: np.ndarray, row: np.ndarray, share: float, seed: list[int]
) -> np.ndarray:
    """Drawn for every row of an index, used or not, so that it depends on nothing else."""
    first = np.zeros(len(row), bool)
    for i, index in enumerate(indices):
        mine = source == i
        drawn = np.random.default_rng([*seed, len(KINDS), i]).random(len(index))  # behind the kinds' own numbers
        first[mine] = drawn[row[mine]] < share
    return first


def cut_to_samples(order: Order, samples: int, run: str) -> Order:
    """The first `samples` of an order; UserError if that is more than one epoch."""
    if samples > len(order):
        raise UserError(
            f"run {run!r}: train.samples is {samples:,}, but its sources hold only {len(order):,} samples in the "
            "wanted shares, and no sample is trained on twice; lower train.samples, change data.share, or add sources"
        )
    return order.first(samples)


def cut_to_flops(order: Order, flops_of_each: np.ndarray, budget: float, run: str) -> Order:
    """The longest start of an order within a budget of training FLOPs; UserError if that exceeds one epoch."""
    spent = np.cumsum(flops_of_each)
    if spent[-1] < budget:
        raise UserError(
            f"run {run!r}: its sources hold {len(order):,} samples = {spent[-1]:.3g} training FLOPs, fewer than "
            "the budget of "
            f"{budget:.3g}, and no sample is trained on twice; lower the budget or add sources"
        )
    count = int(np.searchsorted(spent, budget, side="right"))
    if count == 0:
        raise UserError(
            f"run {run!r}: one sample costs {spent[0]:.3g} training FLOPs, more than the budget of {budget:.3g}; "
            "raise the budget"
        )
    return order.first(count)


def split_held_out(index: Index, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and rows held out: all samples of one original file fall on the same side."""
    # The group is a hash of the file's name, so its value modulo 10^6 is as good as a drawn number.
    held = index.group % 1_000_000 < round(share * 1_000_000)
    return np.flatnonzero(~held), np.flatnonzero(held)
