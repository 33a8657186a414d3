"""What the layers of both backbones share: scaled dot-product attention and activation checkpointing."""

from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """softmax(query key^T / sqrt(width)) value.

    query     (B, H, S, width)
    key       (B, K, L, width) with H a multiple of K (grouped-query attention); value the same
    mask      bool, broadcastable to (B, H, S, L), True: attended
    causal    position i sees positions up to i; S = L and no mask
    returns   (B, H, S, width)
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return _attend_plainly(query, key, value, mask, causal)
    return _attend_fused(query, key, value, mask, causal, on_gpu=query.device.type == "cuda")


def _attend_fused(query, key, value, mask, causal, on_gpu: bool) -> torch.Tensor:
    """`attend` by torch's kernels that keep no scores.

    On GPUs only the flash kernel takes grouped keys, and it takes neither a mask nor float32. The memory-efficient
    kernel takes both, but needs a key for every head. With grouped keys torch would fall back to plain products.
    """
    if on_gpu and (mask is not None or query.dtype == torch.float32):
        key, value = _for_every_head(query, key, value)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def _for_every_head(query, key, value):
    """Return keys and values (B, H, L, width), copied within their groups."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)


def _attend_plainly(query, key, value, mask, causal) -> torch.Tensor:
    """`attend` by plain matrix products, which in bfloat16 on CPUs are faster than torch's fused kernel."""
    key, value = _for_every_head(query, key, value)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ value


def attention_weights(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return the weights (B, H, S, L) of `attend` without a mask, in float32 or finer also under autocast."""
    precise = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        scores = query.to(precise) @ key.to(precise).transpose(-1, -2)
        return (scores * query.shape[-1] ** -0.5).softmax(-1)


def working_dtype(weight: torch.Tensor) -> torch.dtype:
    """Return the dtype of matrix products with this float tensor: autocast's, or its own."""
    kind = weight.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def recomputed(layer: Callable, *inputs, recompute: bool):
    """Return `layer(*inputs)`; with `recompute` only `inputs` are kept, and the backward pass calls it again.

    The gradients are the same, since nothing in a layer is random.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
    return layer(*inputs)
