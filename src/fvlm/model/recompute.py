"""Activation checkpointing: a layer's inputs are kept and the rest is computed again in the backward pass."""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint


def call(layer: Callable, *inputs, recompute: bool):
    """`layer(*inputs)`; with `recompute` nothing but `inputs` is kept for the backward pass, which calls it again.

    The gradients are the same: nothing in a layer is random.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
    return layer(*inputs)
