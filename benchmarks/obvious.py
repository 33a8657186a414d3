"""The foveated model written in the obvious way: transformers' modules unchanged, everything padded.

Frames are padded to the longest video of the batch and texts to the longest text; `Dinov2Model` gives the hidden states
of all layers, and each reading computes keys and values from them again; logits are computed at every position. The
masks are correct, so that the loss is that of `fvlm.model.VideoLanguageModel` in mode coarse_fine with deep queries.

Letters: B samples, T frames of the longest, S text tokens of the longest, E language width, Q query width.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import Dinov2Model, LlamaForCausalLM

from fvlm.batch import Batch
from fvlm.model.encoder import PIXEL_MEAN, PIXEL_STD
from fvlm.model.foveated import VideoLanguageModel
from fvlm.model.pretrained import encoder_config, language_config


@dataclass
class Padded:
    """A batch of padded samples; a mask is True for real frames or tokens."""

    frames: torch.Tensor  # (B, T, 3, 224, 224) uint8
    frames_mask: torch.Tensor  # (B, T)
    input_ids: torch.Tensor  # (B, S)
    text_mask: torch.Tensor  # (B, S)
    labels: torch.Tensor  # (B, S), -100: not scored

    @classmethod
    def of(cls, batch: Batch) -> "Padded":
        videos = batch.frames[batch.frame_index].permute(0, 3, 1, 2).split(batch.frame_counts.tolist())
        texts = batch.token_ids.split(batch.token_counts.tolist())
        labels = batch.token_ids.masked_fill(~batch.loss_mask, -100).split(batch.token_counts.tolist())
        frames, input_ids = pad_sequence(videos, batch_first=True), pad_sequence(texts, batch_first=True)
        return cls(
            frames=frames,
            frames_mask=torch.arange(frames.shape[1]) < batch.frame_counts[:, None],
            input_ids=input_ids,
            text_mask=torch.arange(input_ids.shape[1]) < batch.token_counts[:, None],
            labels=pad_sequence(labels, batch_first=True, padding_value=-100),
        )

    def to(self, device: torch.device | str) -> "Padded":
        return Padded(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


class ObviousModel(nn.Module):
    """The same model with a copy of the weights."""

    def __init__(self, model: VideoLanguageModel):
        super().__init__()
        self.dino = Dinov2Model(encoder_config(model.config.encoder)).eval()
        self.dino.load_state_dict(model.dino.dino.state_dict())
        self.llm = LlamaForCausalLM(language_config(model.config.language)).eval()
        self.llm.model.load_state_dict(model.llm.llama.state_dict())
        self.connector = copy.deepcopy(model.connector)
        self.heads = model.config.encoder.heads
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(3, 1, 1))
        self.dino.embeddings.mask_token.requires_grad_(False)

    def forward(self, batch: Padded) -> torch.Tensor:
        """Return the summed cross-entropy of the scored text tokens, in nats."""
        pixels = (batch.frames.flatten(0, 1).float() / 255 - self.mean) / self.std
        hidden_states = self.dino(pixels, output_hidden_states=True).hidden_states
        shape = batch.frames_mask.shape
        connector = self.connector

        coarse_BTE = self.read(connector.q_static.expand(*shape, -1), hidden_states)
        after_BTE = self.llm.model(inputs_embeds=coarse_BTE, attention_mask=batch.frames_mask.long()).last_hidden_state
        first_B1Q = connector.q_init.expand(shape[0], 1, -1)
        query_BTQ = torch.cat([first_B1Q, connector.llm_to_query(after_BTE)[:, :-1]], dim=1)
        fine_BTE = self.read(query_BTQ, hidden_states)

        text_BSE = self.llm.get_input_embeddings()(batch.input_ids)
        rows, labels = [], []
        for i, (frames, tokens) in enumerate(zip(batch.frames_mask.sum(1), batch.text_mask.sum(1), strict=True)):
            rows.append(torch.cat([fine_BTE[i, :frames].to(text_BSE.dtype), text_BSE[i, :tokens]]))
            labels.append(torch.cat([batch.labels.new_full((int(frames),), -100), batch.labels[i, :tokens]]))
        mask = pad_sequence([torch.ones_like(row) for row in labels], batch_first=True)
        labels = pad_sequence(labels, batch_first=True, padding_value=-100)
        logits = self.llm(inputs_embeds=pad_sequence(rows, batch_first=True), attention_mask=mask).logits
        return F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )

    def read(self, query_BTQ: torch.Tensor, hidden_states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Pass one query per frame through the layers of DINOv2; returns the visual tokens (B, T, E)."""
        x = self.connector.query_input_proj(query_BTQ).flatten(0, 1)[:, None]
        for layer, patches in zip(self.dino.encoder.layer, hidden_states[:-1], strict=True):
            attention, normed = layer.attention, layer.norm1(patches)
            query = self._split(attention.q_proj(layer.norm1(x)))
            key, value = self._split(attention.k_proj(normed)), self._split(attention.v_proj(normed))
            seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
            x = x + layer.layer_scale1(attention.o_proj(seen))
            x = x + layer.layer_scale2(layer.mlp(layer.norm2(x)))
        visual = self.connector.project(self.dino.layernorm(x)[:, 0])
        return visual.unflatten(0, query_BTQ.shape[:2])

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def named_as_ours(self) -> dict[str, nn.Parameter]:
        """Return the parameters by their names in `VideoLanguageModel`."""
        starts = {"dino.": "dino.dino.", "llm.model.": "llm.llama.", "connector.": "connector."}
        result = {}
        for name, parameter in self.named_parameters():
            start = next(start for start in starts if name.startswith(start))
            result[starts[start] + name.removeprefix(start)] = parameter
        return result
