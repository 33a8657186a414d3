"""Which sample is trained on when: a pure function of (seed, position), fixed before the run starts.

It does not depend on how many processes read or train, so a run can stop anywhere and go on exactly there.
"""

from dataclasses import dataclass

import numpy as np

from fvlm.data.index import Index
from fvlm.errors import UserError

KINDS = ("video", "image", "text", "preference")


@dataclass(frozen=True)
class Order:
    """`n` samples in training order; sample i is row `row[i]` of source `source[i]`.

    source, row     (n,) int64
    positions       (n,) int64, visual positions of the sample as trained (static frames counted)
    text_tokens     (n,) int64, after the cut at max_text_tokens
    """

    source: np.ndarray
    row: np.ndarray
    positions: np.ndarray
    text_tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def first(self, n: int) -> "Order":
        return Order(self.source[:n], self.row[:n], self.positions[:n], self.text_tokens[:n])


def draw_order(
    indices: list[Index], rows: list[np.ndarray], share: dict, static_frames: int, max_tokens: int, seed: int
) -> Order:
    """The longest order that the mixture allows without showing any sample twice.

    indices     one per source
    rows        rows of each index that may be trained on
    share       kind -> share of the samples; exact to one sample in every window of the order
    raises      UserError if a kind with a share has no sample
    """
    pools = {kind: _pool(kind, indices, rows) for kind in KINDS if share.get(kind, 0) > 0}
    for kind, (source, _) in pools.items():
        if not len(source):
            raise UserError(
                f"data.share wants {share[kind]:.0%} {kind} samples, but the run's sources hold none; "
                "check their ledgers"
            )
    length = int(min(len(source) / share[kind] for kind, (source, _) in pools.items()))
    place, source, row = [], [], []
    for kind, (pool_source, pool_row) in pools.items():
        shuffled = np.random.default_rng([seed, KINDS.index(kind)]).permutation(len(pool_source))
        count = min(len(shuffled), round(length * share[kind]))
        # Sample j of a kind with share s belongs at (j + 1/2) / s: any window then holds its share, to one sample.
        place.append((np.arange(count) + 0.5) / share[kind])
        source.append(pool_source[shuffled[:count]])
        row.append(pool_row[shuffled[:count]])
    by_place = np.argsort(np.concatenate(place), kind="stable")
    return _with_lengths(
        np.concatenate(source)[by_place], np.concatenate(row)[by_place], indices, static_frames, max_tokens
    )


def in_file_order(indices: list[Index], rows: list[np.ndarray], static_frames: int, max_tokens: int) -> Order:
    """The given rows, source after source: for evaluation."""
    source = np.concatenate([np.full(len(r), i) for i, r in enumerate(rows)])
    return _with_lengths(
        source.astype(np.int64), np.concatenate(rows).astype(np.int64), indices, static_frames, max_tokens
    )


def _pool(kind: str, indices: list[Index], rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    members = [i for i, index in enumerate(indices) if index.kind == kind]
    source = [np.full(len(rows[i]), i, dtype=np.int64) for i in members]
    row = [np.asarray(rows[i], dtype=np.int64) for i in members]
    empty = np.zeros(0, dtype=np.int64)
    return np.concatenate([empty, *source]), np.concatenate([empty, *row])


def _with_lengths(source, row, indices, static_frames, max_tokens) -> Order:
    positions = np.zeros(len(row), dtype=np.int64)
    tokens = np.zeros(len(row), dtype=np.int64)
    for i, index in enumerate(indices):
        mine = source == i
        frames = index.frames[row[mine]]
        still = index.kind in ("image", "preference")
        positions[mine] = np.where(frames == 1, static_frames, frames) if still else frames
        tokens[mine] = np.minimum(index.text_tokens[row[mine]], max_tokens)
    return Order(source, row, positions, tokens)


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


def micro_batches(positions: np.ndarray, tokens: np.ndarray, most_positions: int, most_tokens: int) -> list[list[int]]:
    """Split a step's samples, in order, into groups within a budget of visual positions and text tokens.

    A sample that exceeds the budget alone forms a group of its own.
    """
    groups: list[list[int]] = []
    used_positions = used_tokens = 0
    for i, (p, t) in enumerate(zip(positions.tolist(), tokens.tolist(), strict=True)):
        if not groups or used_positions + p > most_positions or used_tokens + t > most_tokens:
            groups.append([])
            used_positions = used_tokens = 0
        groups[-1].append(i)
        used_positions, used_tokens = used_positions + p, used_tokens + t
    return groups


def split_held_out(index: Index, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and rows held out: all samples of one original file fall on the same side."""
    # The group is a hash of the file's name, so its value modulo 10^6 is as good as a drawn number.
    held = index.group % 1_000_000 < round(share * 1_000_000)
    return np.flatnonzero(~held), np.flatnonzero(held)
