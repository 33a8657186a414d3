"""Attention with grouped keys: one result, whichever kernel serves it."""

import pytest
import torch

from fvlm.model import attention
from fvlm.model.attention import attend


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_keys_copied_for_every_head_give_the_same(masked, kv_heads):
    draw = torch.Generator().manual_seed(0)
    shapes = ((2, 6, 9, 8), (2, kv_heads, 9, 8), (2, kv_heads, 9, 8))
    tensors = [torch.randn(shape, generator=draw).requires_grad_() for shape in shapes]
    mask = torch.ones(9, 9, dtype=torch.bool).tril().expand(2, 1, 9, 9) if masked else None
    weights = torch.randn(2, 6, 9, 8, generator=draw)
    results = []
    for seen in (
        attend(*tensors, mask, causal=not masked),
        attention._attend_fused(*tensors, mask, not masked, on_gpu=True),
        attention._attend_plainly(*tensors, mask, not masked),
    ):
        results.append([seen, *torch.autograd.grad((seen * weights).sum(), tensors)])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])
