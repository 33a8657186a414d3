"""Samples of different lengths, packed into rows of one width with little padding.

A sample is [visual tokens, text tokens], or with the question first [question, visual tokens, rest of the text].

Letters: B samples, R rows, W cells of a row, U distinct frames, P visual positions, S text tokens.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from fvlm.batch import Batch
from fvlm.model.encoder import Visits


@dataclass
class Rows:
    """The cell of each token of some samples; the tokens of a sample are neighbours.

    count, width   R and W
    cells          (M,) int64 into R x W: first all visual tokens, then all text tokens, sample after sample
    positions      (R, W) int64, the place within the sample; 0 in empty cells
    mask           (R, 1, W, W) bool, True: attended, that is of the same sample and not later; None if no row holds
                   two samples: causal order is then enough, since empty cells come last
    """

    count: int
    width: int
    cells: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None


def first_fit(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Put each sample, longest first, into the first row with room; rows are as wide as the longest sample.

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


def pack(visual_B: np.ndarray, text_B: np.ndarray, question_B: np.ndarray, device: torch.device) -> Rows:
    """Return the rows of samples with `visual_B` visual and `text_B` text tokens; a sample may have neither.

    question_B   text tokens of each sample that stand before the visual tokens
    """
    lengths = visual_B + text_B
    row, column, count, width = first_fit(lengths)
    start = row * width + column
    sample = np.repeat(np.arange(len(lengths)), lengths)
    place = count_up(lengths)

    owner = np.full(count * width, -1)
    owner[start[sample] + place] = sample
    positions = np.zeros(count * width, np.int64)
    positions[start[sample] + place] = place
    visual = np.repeat(start + question_B, visual_B) + count_up(visual_B)
    text = np.repeat(start, text_B) + text_places(visual_B, text_B, question_B)
    alone = count == np.count_nonzero(lengths)
    return Rows(
        count,
        width,
        _sent(np.concatenate([visual, text]), device),
        _sent(positions, device).view(count, width),
        None if alone else _block_causal(_sent(owner, device).view(count, width)),
    )


def text_places(visual_B: np.ndarray, text_B: np.ndarray, question_B: np.ndarray) -> np.ndarray:
    """Return the place of each text token (S,) within its sample."""
    number = count_up(text_B)
    after_frames = number >= np.repeat(question_B, text_B)
    return number + after_frames * np.repeat(visual_B, text_B)


def _sent(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Start a copy to a device; the CPU does not wait for it."""
    return torch.from_numpy(values).to(device, non_blocking=True)


def _block_causal(owner_RW: torch.Tensor) -> torch.Tensor:
    """Return the mask of `Rows`. Empty cells attend to each other, so that no row of the softmax is empty."""
    width = owner_RW.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=owner_RW.device).tril()
    return (owner_RW[:, None, :, None] == owner_RW[:, None, None, :]) & earlier


class Plan:
    """The layout of a batch, computed in host memory.

    The CPU never waits for a GPU: it reads nothing back, and its copies to the GPU are non-blocking.

    frame_counts, visual_B, text_B   (B,) frames, visual tokens and text tokens of each sample
    question_B                       (B,) text tokens before its visual tokens; 0 without visual tokens
    scored                           (X,) int64, the text tokens that the loss is summed over
    count_B                          (B,) int64, scored tokens of each sample
    """

    def __init__(self, batch: Batch, visual_tokens: int, device: torch.device):
        self.device = device
        self.frame_counts = batch.frame_counts.numpy()
        self.visual_B = self.frame_counts * visual_tokens
        self.text_B = batch.token_counts.numpy()
        self.question_B = np.where(self.visual_B > 0, batch.question_counts.numpy(), 0)
        self.frame_index = batch.frame_index
        self.frames = len(batch.frames)
        # a token with nothing before it cannot be predicted
        scored = batch.loss_mask.numpy() & (text_places(self.visual_B, self.text_B, self.question_B) > 0)
        self.scored = torch.from_numpy(np.flatnonzero(scored))
        sample = np.repeat(np.arange(len(batch)), self.text_B)
        self.count_B = torch.from_numpy(np.bincount(sample[scored], minlength=len(batch)))

    @cached_property
    def rows(self) -> Rows:
        """Visual and text tokens together."""
        return pack(self.visual_B, self.text_B, self.question_B, self.device)

    @cached_property
    def visual_rows(self) -> Rows:
        """The visual tokens with the questions before them."""
        return pack(self.visual_B, self.question_B, self.question_B, self.device)

    @cached_property
    def questions(self) -> torch.Tensor | None:
        """The text tokens that stand before frames, sample after sample; None if there are none."""
        if not self.question_B.any():
            return None
        in_question = count_up(self.text_B) < np.repeat(self.question_B, self.text_B)
        return self.on_device(torch.from_numpy(np.flatnonzero(in_question)))

    @cached_property
    def visits(self) -> Visits:
        return Visits.of(self.frame_index, self.frames, self.device)

    @cached_property
    def shown(self) -> torch.Tensor | None:
        """The frame at each position; None if position i shows frame i."""
        return None if self.visits.cells is None else self.on_device(self.frame_index)

    @cached_property
    def initial_P(self) -> torch.Tensor:
        """True at each frame with nothing before it: the first of a sample without a question before its frames."""
        no_question = np.repeat(self.question_B == 0, self.frame_counts)
        return self.on_device(torch.from_numpy((count_up(self.frame_counts) == 0) & no_question))

    def on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)
