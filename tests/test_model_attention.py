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


@pytest.mark.parametrize(
    "dtype, masked, grouped",
    [(torch.bfloat16, False, True), (torch.bfloat16, True, False), (torch.float32, False, False)],
)
def test_a_gpu_is_given_groups_only_where_the_flash_kernel_serves(dtype, masked, grouped, monkeypatch):
    given = {}
    monkeypatch.setattr(
        attention.F, "scaled_dot_product_attention", lambda query, key, value, **options: given.update(options, key=key)
    )
    mask = torch.ones(5, 5, dtype=torch.bool).tril() if masked else None
    query, key = torch.zeros(1, 6, 5, 8, dtype=dtype), torch.zeros(1, 2, 5, 8, dtype=dtype)
    attention._attend_fused(query, key, key, mask, not masked, on_gpu=True)
    assert given["enable_gqa"] == grouped and given["key"].shape[1] == (2 if grouped else 6)
