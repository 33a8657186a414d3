"""Samples of different length in rows of one width, so that no padding is computed where it can be helped.

Letters: B samples, R rows, W cells of a row.
"""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Rows:
    """Where each token of some samples [visual tokens, text tokens] stands.

    count, width   R and W
    cells          (M,) int64 into R x W: first all visual tokens, then all text tokens, sample after sample
    positions      (R, W) int64, the place within the sample; 0 in empty cells
    mask           (R, 1, W, W) bool, True: may be seen, that is of the same sample and not later;
                   None if no row holds two samples, since then causal order alone keeps empty cells unseen
    """

    count: int
    width: int
    cells: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None


def first_fit(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Longest first, each sample into the first row with room; rows are as wide as the longest sample.

    returns   row and column of each sample's first token, number of rows, width
    """
    width = int(lengths.max(initial=0))
    row, column, used = np.zeros_like(lengths), np.zeros_like(lengths), []
    for sample in np.argsort(-lengths, kind="stable"):
        length = int(lengths[sample])
        place = next((i for i, filled in enumerate(used) if filled + length <= width), len(used))
        if place == len(used):
            used.append(0)
        row[sample], column[sample] = place, used[place]
        used[place] += length
    return row, column, len(used), width


def count_up(counts: np.ndarray) -> np.ndarray:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def pack(visual_B: np.ndarray, text_B: np.ndarray, device: torch.device) -> Rows:
    """Rows for samples of `visual_B` visual and `text_B` text tokens; a sample may have neither."""
    lengths = visual_B + text_B
    row, column, count, width = first_fit(lengths)
    start = row * width + column
    sample = np.repeat(np.arange(len(lengths)), lengths)
    place = count_up(lengths)

    owner = np.full(count * width, -1)
    owner[start[sample] + place] = sample
    positions = np.zeros(count * width, np.int64)
    positions[start[sample] + place] = place
    visual = np.repeat(start, visual_B) + count_up(visual_B)
    text = np.repeat(start + visual_B, text_B) + count_up(text_B)
    alone = count == np.count_nonzero(lengths)
    return Rows(
        count,
        width,
        _sent(np.concatenate([visual, text]), device),
        _sent(positions, device).view(count, width),
        None if alone else _block_causal(_sent(owner, device).view(count, width)),
    )


def _sent(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy on a device that is not waited for."""
    return torch.from_numpy(values).to(device, non_blocking=True)


def _block_causal(owner_RW: torch.Tensor) -> torch.Tensor:
    """Empty cells see one another, so that no row of the softmax is empty; nobody else sees them."""
    width = owner_RW.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=owner_RW.device).tril()
    return (owner_RW[:, None, :, None] == owner_RW[:, None, None, :]) & earlier
