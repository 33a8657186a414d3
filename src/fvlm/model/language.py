"""The language model: a walk through the layers of Llama over packed rows or with a cache.

Letters: R rows, W width of a row in tokens, E language width, H heads.
"""

import torch
from torch import nn
from torch.nn import functional as F

from fvlm.config import schema
from fvlm.model.attention import attend, recomputed, working_dtype
from fvlm.model.backbones import Llama, RmsNorm
from fvlm.model.packing import Rows

ROOM = 256  # tokens that a cache grows by, so that few of its tokens are copied


class Cache:
    """Keys and values of the tokens so far, per layer (R, K, tokens, E / H), with room for more behind them."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.lengths: dict[int, int] = {}  # tokens of each layer

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.lengths.get(0, 0)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token in all rows and layers."""
        tensors = [tensor for pair in self.layers.values() for tensor in pair]
        return sum(tensor.element_size() * tensor[:, :, 0].numel() for tensor in tensors)

    def extend(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new tokens' keys and values; return those of all tokens."""
        before = self.lengths.get(layer, 0)
        after = before + key.shape[2]
        kept = self.layers.get(layer)
        if kept is None or kept[0].shape[2] < after:
            kept = tuple(
                _with_room(new, None if kept is None else kept[place][:, :, :before], after + ROOM)
                for place, new in enumerate((key, value))
            )
            self.layers[layer] = kept
        for all_tokens, new in zip(kept, (key, value), strict=True):
            all_tokens[:, :, before:after] = new
        self.lengths[layer] = after
        return kept[0][:, :, :after], kept[1][:, :, :after]

    def keep(self, rows: int) -> None:
        """Forget all but the first rows."""
        self.layers = {number: (key[:rows], value[:rows]) for number, (key, value) in self.layers.items()}

    def cut(self, tokens: int) -> None:
        """Forget all but the first tokens."""
        self.lengths = {number: min(length, tokens) for number, length in self.lengths.items()}


def _with_room(new: torch.Tensor, before: torch.Tensor | None, tokens: int) -> torch.Tensor:
    """Return a tensor for so many tokens that begins with those before."""
    result = new.new_empty(*new.shape[:2], tokens, new.shape[3])
    if before is not None:
        result[:, :, : before.shape[2]] = before
    return result


class Language(nn.Module):
    """Embeddings, layers and tied logits of a Llama model."""

    def __init__(self, llama: Llama):
        super().__init__()
        self.llama = llama
        self.recompute = False  # activation checkpointing of the layers, without a cache

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.llama.embed_tokens(token_ids)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits over the vocabulary, with the embeddings as output weights."""
        return F.linear(hidden, self.llama.embed_tokens.weight)

    def run_packed(self, tokens_ME: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Return the hidden states (R x W, E) of packed tokens (M, E), in the cells of `rows`."""
        cells = tokens_ME.new_zeros(rows.count * rows.width, tokens_ME.shape[1])
        x_RWE = cells.index_copy(0, rows.cells, tokens_ME).unflatten(0, (rows.count, rows.width))
        return self._walk(x_RWE, rows.positions, rows.mask, rows.mask is None, None).flatten(0, 1)

    def run_next(
        self, x_RWE: torch.Tensor, start: int | torch.Tensor, cache: Cache, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the hidden states of W more tokens of every row, after the cached ones.

        start   place of the first new token in its sequence, one number or (R, 1)
        mask    (R, 1, 1, tokens) bool, True: a real token of cache or row; None: all are real
        """
        width, before = x_RWE.shape[1], cache.length
        positions = start + torch.arange(width, device=x_RWE.device)[None]
        if before and width > 1:  # a new token sees the cached ones and the new ones up to itself
            earlier = torch.ones(width, before + width, dtype=torch.bool, device=x_RWE.device).tril(before)
            mask = earlier if mask is None else mask & earlier
        return self._walk(x_RWE, positions, mask, not before and width > 1, cache)

    def _walk(
        self, x: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, causal: bool, cache: Cache | None
    ) -> torch.Tensor:
        """Pass tokens x (R, W, E) at `positions` (R or 1, W) through all layers; mask and causal as in `attend`."""
        llama = self.llama
        x = x.to(llama.norm.weight.dtype)  # the residual stream stays exact under autocast
        cos, sin = _rotation(positions, llama.size, x.dtype)
        for number, layer in enumerate(llama.layers):
            place = None if cache is None else (cache, number)
            x = recomputed(_layer, layer, x, cos, sin, mask, causal, place, recompute=self.recompute and cache is None)
        return _norm(llama.norm, x)


def _rotation(positions: torch.Tensor, size: schema.LanguageSize, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Return cos and sin (R or 1, 1, W, E / H) of the rotary position embedding (Su et al. 2021), from float32."""
    head = size.width // size.heads
    exponent = torch.arange(0, head, 2, device=positions.device).float() / head
    angle = positions[:, None, :, None].float() * (1 / size.rope_theta**exponent)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (i, i + half) of a head's numbers by its angle; x (R, H, W, E / H)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


def _layer(layer: nn.Module, x, cos, sin, mask, causal: bool, place: tuple[Cache, int] | None) -> torch.Tensor:
    """One layer; `place`: the cache and the layer's number in it."""
    attention = layer.self_attn
    normed = _norm(layer.input_layernorm, x)
    query, key, value = (
        projection(normed).unflatten(2, (-1, cos.shape[-1])).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
    if place is not None:
        cache, number = place
        key, value = cache.extend(number, key, value)
    seen = attend(query, key, value, mask, causal)
    x = x + attention.o_proj(seen.transpose(1, 2).flatten(2))
    return x + layer.mlp(_norm(layer.post_attention_layernorm, x))


def _norm(norm: RmsNorm, x: torch.Tensor) -> torch.Tensor:
    """RMS norm, in the dtype of the matrix products that read it."""
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps).to(working_dtype(x))
