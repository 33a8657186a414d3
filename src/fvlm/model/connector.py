"""The connector of each architecture: the new parameters between encoder and language model.

Letters: U distinct frames, P visual positions, N tokens of a frame (CLS and patches), D encoder width,
E language width.
"""

from math import isqrt

import torch
from torch import nn
from torch.nn import functional as F

from fvlm.config import schema
from fvlm.errors import UserError


class Connector(nn.Module):
    """The connector of a model without frames: no parameters."""

    def __init__(self, model: schema.Model):
        super().__init__()
        self.visual_scale = model.visual_scale

    def draw_queries(self) -> None:
        """Draw the parameters that are no linear layers."""


class QueryConnector(Connector):
    """The connector of the foveated model: queries into the encoder, readings into the language model, and back."""

    def __init__(self, model: schema.Model):
        super().__init__(model)
        width, language, query = model.encoder.width, model.language.width, model.query_dim
        # no bias: it would be the same for every query and outweigh their differences
        self.query_input_proj = nn.Linear(query, width, bias=False)
        self.output_proj = nn.Linear(width, width)
        self.dino_to_llm = nn.Linear(width, language)
        self.llm_to_query = nn.Linear(language, query)
        self.q_static = nn.Parameter(torch.empty(query))
        self.q_init = nn.Parameter(torch.empty(query))
        self.query_std = model.query_init_std

    def draw_queries(self) -> None:
        nn.init.normal_(self.q_static, std=self.query_std)
        nn.init.normal_(self.q_init, std=self.query_std)

    def project(self, read_PD: torch.Tensor) -> torch.Tensor:
        """Readings of the queries (P, D) -> visual tokens (P, E)."""
        return self.dino_to_llm(self.output_proj(read_PD)) * self.visual_scale


class PooledConnector(Connector):
    """A fixed matrix over a frame's patches, then one linear layer.

    A matrix is deterministic also backward on GPUs, unlike pooling kernels.
    """

    def __init__(self, model: schema.Model):
        super().__init__(model)
        if model.variant.problem:
            raise UserError(model.variant.problem)
        side, self.tokens = model.encoder.side, model.variant.tokens
        patches = torch.eye(side * side).view(side * side, 1, side, side)
        matrix = self.pooled(patches, model).reshape(side * side, -1).T.contiguous()
        self.register_buffer("pool", matrix, persistent=False)
        self.dino_to_llm = nn.Linear(model.variant.token_width, model.language.width)

    @staticmethod
    def pooled(patches: torch.Tensor, model: schema.Model) -> torch.Tensor:
        """The linear map of one number per patch (*, 1, side, side) -> (*, ...), token after token.

        If a token is made of several rows of the matrix, they stand side by side.
        """
        raise NotImplementedError

    def project(self, features_UND: torch.Tensor) -> torch.Tensor:
        """Features of CLS and patches (U, N, D) -> visual tokens (U, tokens, E)."""
        patches = features_UND[:, 1:]
        pooled = torch.matmul(self.pool.to(patches.dtype), patches)
        return self.dino_to_llm(pooled.unflatten(1, (self.tokens, -1)).flatten(2)) * self.visual_scale


class AveragePool(PooledConnector):
    """Averages over k x k windows, those of adaptive average pooling."""

    @staticmethod
    def pooled(patches: torch.Tensor, model: schema.Model) -> torch.Tensor:
        return F.adaptive_avg_pool2d(patches, isqrt(model.tokens_per_frame))


class PixelShuffle(PooledConnector):
    """Bilinear to 7r x 7r with r = side // 7 (at least 1); each r x r block is one token."""

    @staticmethod
    def pooled(patches: torch.Tensor, model: schema.Model) -> torch.Tensor:
        tokens, block = model.variant.side, isqrt(model.variant.rows_per_token)
        wanted = tokens * block
        resized = F.interpolate(patches, size=(wanted, wanted), mode="bilinear", antialias=wanted < model.encoder.side)
        # (7 r1) (7 r2) -> 7 7 r1 r2
        return resized.unflatten(3, (tokens, block)).unflatten(2, (tokens, block)).transpose(3, 4)


CONNECTORS: dict[str, type[Connector]] = {
    "foveated": QueryConnector,
    "multi_token": AveragePool,
    "pixel_shuffle": PixelShuffle,
    "blind": Connector,
}
