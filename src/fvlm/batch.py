"""What travels from the data to the model: the real frames and the real tokens of some samples, no padding."""

from dataclasses import dataclass, replace

import torch


@dataclass
class Batch:
    """`B` samples packed end to end. Frames and token ids may be on a GPU; all else is always in host memory.

    frames          (U, 224, 224, 3) uint8, the distinct frames
    frame_index     (P,) int64, which frame each visual position shows, sample after sample; an image that is
                    repeated to N static frames is one frame named N times
    frame_counts    (B,) int64, visual positions of each sample; sums to P; 0 for a text-only sample
    token_ids       (S,) int64, text tokens, sample after sample
    token_counts    (B,) int64, sums to S; at least 1 each
    loss_mask       (S,) bool, True: this token is scored when it is predicted from what stands before it
    keys, sources   one name per sample
    question_counts (B,) int64, how many of a sample's first text tokens stand before its frames; None: none does
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
        found = (len(self.frame_index), len(self.token_ids), len(self.loss_mask), len(self.frame_counts))
        wanted = (int(self.frame_counts.sum()), int(self.token_counts.sum()), int(self.token_counts.sum()),
                  len(self.keys))  # fmt: skip
        if found != wanted:
            raise ValueError(f"batch: positions, tokens, loss mask and samples are {found}, counts say {wanted}")
        if self.question_counts is None:
            self.question_counts = torch.zeros_like(self.token_counts)
        if bool((self.question_counts > self.token_counts).any()):
            raise ValueError("batch: a sample has more question tokens than text tokens")
        if self.loss_mask.dtype != torch.bool or self.frames.dtype != torch.uint8:
            raise ValueError(f"batch: loss mask is {self.loss_mask.dtype}, frames are {self.frames.dtype}")

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> "Batch":
        """Frames and token ids on a device. The rest stays in host memory, where the model plans with it."""
        return replace(
            self,
            frames=self.frames.to(device, non_blocking=True),
            token_ids=self.token_ids.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "Batch":
        """Frames and token ids in pinned memory, so that `to` need not wait; a DataLoader calls this by its name."""
        return replace(self, frames=self.frames.pin_memory(), token_ids=self.token_ids.pin_memory())

    def without_frames(self) -> "Batch":
        """The same texts, blind: no sample has a frame."""
        return replace(
            self,
            frames=self.frames[:0],
            frame_index=self.frame_index[:0],
            frame_counts=torch.zeros_like(self.frame_counts),
            question_counts=None,
        )

    def video_first(self) -> "Batch":
        """The same samples with all text behind the frames."""
        return replace(self, question_counts=None)

    def with_frames_of_neighbour(self) -> "Batch | None":
        """Each sample with frames sees those of the next one that has some (the control for 'does it see?').

        None if fewer than two samples have frames: there is no other sample's frame to show.
        """
        counts = self.frame_counts.tolist()
        seeing = [i for i, count in enumerate(counts) if count]
        if len(seeing) < 2:
            return None
        pieces = self.frame_index.split(counts)
        swapped = list(range(len(counts)))
        for i, j in zip(seeing, seeing[1:] + seeing[:1], strict=True):
            swapped[i] = j
        index = torch.cat([pieces[j] for j in swapped])
        return replace(self, frame_index=index, frame_counts=self.frame_counts[swapped])
