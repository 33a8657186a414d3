"""The batch that data loading hands to the model: real frames and real tokens of samples, no padding."""

from dataclasses import dataclass, replace

import torch


@dataclass
class Batch:
    """`B` samples packed end to end. Frames and token ids may be on a GPU; the rest is always in host memory.

    frames          (U, 224, 224, 3) uint8, the distinct frames
    frame_index     (P,) int64, the frame at each visual position, sample after sample; an image that is repeated to N
                    static frames is one frame N times
    frame_counts    (B,) int64, visual positions of each sample; sums to P; 0 for a text-only sample
    token_ids       (S,) int64, text tokens, sample after sample
    token_counts    (B,) int64, text tokens of each sample, at least 1; sums to S
    loss_mask       (S,) bool, True: this token is scored
    keys, sources   one name per sample
    question_counts (B,) int64, first text tokens of each sample that stand before its frames; None: 0 each
    """

    frames: torch.Tensor
    frame_index: torch.Tensor
    frame_counts: torch.Tensor
    token_ids: torch.Tensor
    token_counts: torch.Tensor
    loss_mask: torch.Tensor
    keys: list[str]
    sources: list[str]
    question_counts: torch.Tensor | None = None

    def __post_init__(self) -> None:
        lengths = (len(self.frame_index), len(self.token_ids), len(self.loss_mask), len(self.frame_counts))
        positions, tokens = int(self.frame_counts.sum()), int(self.token_counts.sum())
        expected = (positions, tokens, tokens, len(self.keys))
        if lengths != expected:
            raise ValueError(f"batch: positions, tokens, loss mask, samples are {lengths}; by the counts {expected}")
        if self.question_counts is None:
            self.question_counts = torch.zeros_like(self.token_counts)
        if bool((self.question_counts > self.token_counts).any()):
            raise ValueError("batch: a sample has more question tokens than text tokens")
        if self.loss_mask.dtype != torch.bool or self.frames.dtype != torch.uint8:
            raise ValueError(f"batch: loss mask is {self.loss_mask.dtype}, frames are {self.frames.dtype}")

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch with frames and token ids on a device. The model plans with the rest in host memory."""
        return replace(
            self,
            frames=self.frames.to(device, non_blocking=True),
            token_ids=self.token_ids.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "Batch":
        """Return the batch with frames and token ids in pinned memory, so that `to` need not wait.

        A DataLoader calls this by its name.
        """
        return replace(self, frames=self.frames.pin_memory(), token_ids=self.token_ids.pin_memory())

    def without_frames(self) -> "Batch":
        """Return the same texts without frames."""
        return replace(
            self,
            frames=self.frames[:0],
            frame_index=self.frame_index[:0],
            frame_counts=torch.zeros_like(self.frame_counts),
            question_counts=None,
        )

    def video_first(self) -> "Batch":
        """Return the same samples with all text behind the frames."""
        return replace(self, question_counts=None)

    def with_frames_of_neighbour(self) -> "Batch | None":
        """Return the batch in which each sample with frames has the frames of the next such sample.

        This is the control for the use of frames. None if fewer than two samples have frames.
        """
        counts = self.frame_counts.tolist()
        with_frames = [i for i, count in enumerate(counts) if count]
        if len(with_frames) < 2:
            return None
        swapped = list(range(len(counts)))
        for i, j in zip(with_frames, with_frames[1:] + with_frames[:1], strict=True):
            swapped[i] = j
        pieces = self.frame_index.split(counts)
        index = torch.cat([pieces[j] for j in swapped])
        return replace(self, frame_index=index, frame_counts=self.frame_counts[swapped])
