"""DINOv2 in two phases: patches once per frame, then one more token per query.

Letters: U distinct frames, P visual positions, N tokens of a frame (CLS and patches), D width, H heads.
"""

from dataclasses import dataclass
from math import isqrt

import torch
from torch import nn
from torch.nn import functional as F

from fvlm.model.attention import attend, attention_weights, recomputed, working_dtype
from fvlm.model.backbones import Dinov2

# ImageNet statistics of RGB in [0, 1], with which DINOv2 was trained.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


@dataclass
class FrameStates:
    """The states of U frames that queries read.

    keys, values   per layer (U, H, N, D / H); empty if not kept
    features       (U, N, D) after the final norm; None if not kept
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    features: torch.Tensor | None

    def select(self, index: torch.Tensor) -> "FrameStates":
        """Return the states of some frames, one row per entry of `index`."""
        features = None if self.features is None else self.features[index]
        keys, values = ([layer[index] for layer in kept] for kept in (self.keys, self.values))
        return FrameStates(keys, values, features)


@dataclass
class Visits:
    """The frame that each visual position reads, arranged so that no key is copied.

    The queries of several positions at one frame are several rows of one attention.
    cells    (P,) int64 into U x most; None if position i reads frame i
    most     largest number of positions at one frame
    """

    cells: torch.Tensor | None
    most: int

    @classmethod
    def of(cls, frame_index: torch.Tensor, frames: int, device: torch.device) -> "Visits":
        """Arrange `frame_index` (P,), a tensor in host memory, over `frames` frames."""
        if torch.equal(frame_index, torch.arange(frames)):
            return cls(None, 1)
        order = frame_index.argsort(stable=True)
        counts = frame_index.bincount(minlength=frames)
        starts = counts.cumsum(0) - counts
        turn = torch.empty_like(frame_index)  # number of earlier positions at the same frame
        turn[order] = torch.arange(len(frame_index)) - starts[frame_index[order]]
        most = int(counts.max())
        return cls((frame_index * most + turn).to(device, non_blocking=True), most)

    def spread(self, query_PD: torch.Tensor, frames: int) -> torch.Tensor:
        """(P, D) -> (U, most, D), empty cells zero."""
        if self.cells is None:
            return query_PD[:, None]
        cells = query_PD.new_zeros(frames * self.most, query_PD.shape[1])
        return cells.index_copy(0, self.cells, query_PD).unflatten(0, (frames, self.most))

    def gather(self, result: torch.Tensor) -> torch.Tensor:
        """(U, most, ...) -> (P, ...), the inverse of `spread`."""
        result = result.flatten(0, 1)
        return result if self.cells is None else result[self.cells]


@dataclass
class Attention:
    """Attention of the queries, averaged over heads and layers.

    entropy   (P,) nats over the N tokens; uniform attention has ln N
    patches   (P, N - 1) weights of the patches, scaled to sum to 1 without CLS
    """

    entropy: torch.Tensor
    patches: torch.Tensor

    @classmethod
    def of(cls, weights: list[torch.Tensor]) -> "Attention":
        """From the weights (P, H, N) of each layer."""
        stacked = torch.stack(weights)
        entropy = torch.special.entr(stacked).sum(-1).mean((0, 2))
        patches = stacked.mean((0, 2))[:, 1:]
        return cls(entropy, patches / patches.sum(-1, keepdim=True))

    def select(self, index: torch.Tensor) -> "Attention":
        """Return the attention of some queries, one row per entry of `index`."""
        return Attention(self.entropy[index], self.patches[index])


class Encoder(nn.Module):
    """A walk through the layers of DINOv2; no other class uses its inner modules."""

    def __init__(self, dino: Dinov2):
        super().__init__()
        self.dino = dino
        self.image, self.patch, self.side = dino.size.image, dino.size.patch, dino.size.side
        self.heads = dino.size.heads
        self.recompute = False  # activation checkpointing of `encode`

    @property
    def layers(self) -> nn.ModuleList:
        return self.dino.encoder.layer

    def encode(self, frames: torch.Tensor, keys: bool, features: bool) -> FrameStates:
        """Phase 1: all patches of all frames.

        frames    (U, image, image, 3) uint8 RGB
        keys      keep each layer's keys and values
        features  compute the features after the last layer; if not, its attention and MLP are skipped
        raises    ValueError if the frames have another size
        """
        x_UND = self._embed(frames)
        states = FrameStates([], [], None)
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1 and not features
            x_UND, key, value = recomputed(self._layer, layer, x_UND, last, recompute=self.recompute)
            if keys:
                states.keys.append(key)
                states.values.append(value)
            if last:
                return states
        states.features = self.dino.layernorm(x_UND)
        return states

    def last_keys(self, features_UND: torch.Tensor) -> FrameStates:
        """Return the last layer's keys and values of the final features, which a shallow query reads."""
        layer = self.layers[-1]
        normed = layer.norm1(features_UND)
        normed = normed.to(working_dtype(normed))
        key, value = (self._split(project(normed)) for project in (layer.attention.k_proj, layer.attention.v_proj))
        return FrameStates([key], [value], None)

    def _layer(self, layer: nn.Module, x_UND: torch.Tensor, only_keys: bool):
        """Pass the patches through one layer; return its output (None with `only_keys`), keys and values."""
        normed = layer.norm1(x_UND)
        normed = normed.to(working_dtype(normed))  # once, not for each projection
        key = self._split(layer.attention.k_proj(normed))
        value = self._split(layer.attention.v_proj(normed))
        if only_keys:
            return None, key, value
        seen = attend(self._split(layer.attention.q_proj(normed)), key, value)
        return self._finish(layer, x_UND, seen.transpose(1, 2).flatten(2)), key, value

    def read(
        self, query_PD: torch.Tensor, states: FrameStates, visits: Visits, weights: bool = False
    ) -> tuple[torch.Tensor, Attention | None]:
        """Phase 2, deep: the query is one more token that passes through all layers.

        It attends to each layer's CLS and patch tokens, not to itself; no patch attends to it.
        query_PD   projected queries, the token's embedding
        weights    also return the attention
        returns    (P, D) after the final norm
        """
        x_PD = query_PD.to(self.dino.layernorm.weight.dtype)  # the residual stream stays exact under autocast
        looked = []
        for layer, key, value in zip(self.layers, states.keys, states.values, strict=True):
            query = visits.spread(layer.attention.q_proj(layer.norm1(x_PD)), len(key))
            query = self._split(query)
            seen = attend(query, key, value).transpose(1, 2).flatten(2)
            x_PD = self._finish(layer, x_PD, visits.gather(seen))
            if weights:
                looked.append(self._look(query, key, visits))
        return self.dino.layernorm(x_PD), Attention.of(looked) if weights else None

    def read_shallow(
        self, query_PD: torch.Tensor, states: FrameStates, visits: Visits, weights: bool = False
    ) -> tuple[torch.Tensor, Attention | None]:
        """Phase 2, shallow: one attention with the encoder's heads, then the final norm.

        The query is not projected; there is no output projection, no MLP and no residual. `states` are those of
        `last_keys`; the other arguments and the result are as in `read`.
        """
        (key,), (value,) = states.keys, states.values
        query = self._split(visits.spread(query_PD, len(key))).to(key.dtype)
        seen = visits.gather(attend(query, key, value).transpose(1, 2).flatten(2))
        looked = Attention.of([self._look(query, key, visits)]) if weights else None
        return self.dino.layernorm(seen), looked

    @torch.no_grad()
    def _look(self, query, key, visits: Visits) -> torch.Tensor:
        """Return the attention weights (P, H, N) of queries (U, H, most, D / H)."""
        return visits.gather(attention_weights(query, key).transpose(1, 2))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, D) -> (B, H, S, D / H)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _finish(self, layer: nn.Module, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """The rest of a layer, after its attention."""
        x = x + layer.layer_scale1(layer.attention.o_proj(seen))
        return x + layer.layer_scale2(layer.mlp(layer.norm2(x)))

    def _embed(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (U, N, D) of CLS and patches, with positions.

        The patch convolution is a matrix product over the raw bytes. Its weights contain the pixel normalisation,
        which then costs nothing per pixel.
        """
        if tuple(frames.shape[1:]) != (self.image, self.image, 3):
            raise ValueError(f"frames are {tuple(frames.shape)}, expected (*, {self.image}, {self.image}, 3)")
        embeddings, side, patch = self.dino.embeddings, self.side, self.patch
        projection = embeddings.patch_embeddings.projection
        cropped = frames[:, : side * patch, : side * patch]
        # b (h p1) (w p2) c -> b (h w) (p1 p2 c)
        pixels = cropped.unflatten(2, (side, patch)).unflatten(1, (side, patch)).transpose(2, 3).flatten(3)
        pixels = pixels.flatten(1, 2)

        weight = projection.weight.permute(0, 2, 3, 1)  # D p1 p2 c
        mean, std = (
            torch.tensor(values, dtype=weight.dtype).to(weight.device, non_blocking=True)
            for values in (PIXEL_MEAN, PIXEL_STD)
        )
        shift = mean / std
        bias = projection.bias - (weight * shift).sum((1, 2, 3))
        patches = F.linear(pixels.to(working_dtype(weight)), (weight / (255 * std)).flatten(1), bias)

        x_UND = torch.cat([embeddings.cls_token.expand(len(frames), -1, -1), patches], dim=1)
        return x_UND + self._positions(embeddings.position_embeddings)

    def _positions(self, stored: torch.Tensor) -> torch.Tensor:
        """Return the position embeddings (1, N, D), resized in float32 as DINOv2 does if they are for another grid."""
        cls, grid = stored.tensor_split([1], dim=1)
        if grid.shape[1] == self.side**2:
            return stored
        side = isqrt(grid.shape[1])
        image = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
        resized = F.interpolate(image, size=(self.side, self.side), mode="bicubic", align_corners=False)
        return torch.cat([cls, resized.flatten(2).transpose(1, 2).to(stored.dtype)], dim=1)
