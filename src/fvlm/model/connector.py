"""The new parameters between the encoder and the language model."""

from math import isqrt

import torch
from torch import nn
from torch.nn import functional as F

from fvlm.config import schema
from fvlm.costs.flops import shuffle_block
from fvlm.errors import UserError

SHUFFLED_SIDE = 7  # pixel shuffle: 7 x 7 tokens per frame


class QueryConnector(nn.Module):
    """Of the foveated model: queries into the encoder, what they read into the language model, and back."""

    def __init__(self, model: schema.Model):
        super().__init__()
        width, language, query = model.encoder.width, model.language.width, model.query_dim
        self.visual_scale = model.visual_scale
        # no bias: it would be the same for every query and drown what tells them apart
        self.query_input_proj = nn.Linear(query, width, bias=False)
        self.output_proj = nn.Linear(width, width)
        self.dino_to_llm = nn.Linear(width, language)
        self.llm_to_query = nn.Linear(language, query)
        self.q_static = nn.Parameter(torch.empty(query))
        self.q_init = nn.Parameter(torch.empty(query))

    def project(self, read_PD: torch.Tensor) -> torch.Tensor:
        """What queries read (P, D) -> visual tokens (P, E)."""
        return self.dino_to_llm(self.output_proj(read_PD)) * self.visual_scale


class PooledConnector(nn.Module):
    """Of the baselines: a frame's patch grid, reduced to a few tokens by a fixed map, then one linear layer.

    multi_token     average over k x k windows (those of adaptive average pooling), k^2 = tokens_per_frame
    pixel_shuffle   bilinear to 7r x 7r with r = side // 7 (at least 1); each r x r block is one token
    """

    def __init__(self, model: schema.Model):
        super().__init__()
        side = model.encoder.image // model.encoder.patch
        self.visual_scale = model.visual_scale
        self.block = 1
        grid = torch.eye(side * side).view(side * side, 1, side, side)
        if model.architecture == "multi_token":
            pool = F.adaptive_avg_pool2d(grid, _pooled_side(model.tokens_per_frame, side))
        else:
            _require_shuffled(model.tokens_per_frame)
            self.block = shuffle_block(side)
            wanted = SHUFFLED_SIDE * self.block
            pool = F.interpolate(grid, size=(wanted, wanted), mode="bilinear", antialias=wanted < side)
            # (7 r1) (7 r2) -> 7 7 r1 r2
            pool = pool.unflatten(3, (SHUFFLED_SIDE, self.block)).unflatten(2, (SHUFFLED_SIDE, self.block))
            pool = pool.transpose(3, 4)
        # a matrix (tokens x block^2, patches): deterministic also backward on GPUs, unlike pooling kernels
        self.register_buffer("pool", pool.reshape(side * side, -1).T.contiguous(), persistent=False)
        self.dino_to_llm = nn.Linear(self.block**2 * model.encoder.width, model.language.width)

    def project(self, features_UND: torch.Tensor) -> torch.Tensor:
        """Features of CLS and patches (U, N, D) -> visual tokens (U, tokens, E)."""
        patches = features_UND[:, 1:]
        pooled = torch.matmul(self.pool.to(patches.dtype), patches)
        return self.dino_to_llm(pooled.unflatten(1, (-1, self.block**2)).flatten(2)) * self.visual_scale


def _pooled_side(tokens: int, side: int) -> int:
    wanted = isqrt(tokens)
    if wanted**2 != tokens or wanted > side:
        raise UserError(
            f"model.tokens_per_frame is {tokens}; multi_token pools the {side} x {side} patches to a square: "
            f"use 1, 4 or 16, at most {side * side}"
        )
    return wanted


def _require_shuffled(tokens: int) -> None:
    if tokens != SHUFFLED_SIDE**2:
        raise UserError(f"model.tokens_per_frame is {tokens}; pixel_shuffle makes 49: write 49")
