"""Next-token cross-entropy at the scored positions only."""

import torch
from torch import nn
from torch.nn import functional as F

CHUNK = 2**26  # logits computed at a time; bounds the temporaries of a large vocabulary


def scored_cross_entropy(language: nn.Module, hidden_XE: torch.Tensor, targets_X: torch.Tensor) -> torch.Tensor:
    """Return the nats (X,) of each target, float32 or finer, from the hidden state before it."""
    size = max(1, CHUNK // language.llama.size.vocabulary)
    pieces = []
    for hidden, targets in zip(hidden_XE.split(size), targets_X.split(size), strict=True):
        logits = language.logits(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        pieces.append(F.cross_entropy(logits, targets, reduction="none"))
    return torch.cat(pieces)


def sum_per_sample(values_X: torch.Tensor, counts_B: torch.Tensor) -> torch.Tensor:
    """Sum values (X,), sample after sample, to (B,); the order of addition is fixed, also on GPUs."""
    # unsafe skips a check of the counts, for which they would be read back from the GPU
    return torch.segment_reduce(values_X, "sum", lengths=counts_B, initial=0, unsafe=True)
