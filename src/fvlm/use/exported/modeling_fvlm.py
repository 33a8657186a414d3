"""fVLM: a language model that watches videos through a few visual tokens per frame.

    foveated       one token per frame. The language model makes a query from all that it has seen so far, and the query
                   reads the next frame.
    multi_token    the patches of a frame, averaged over windows
    pixel_shuffle  the patches of a frame, resized, in 7 x 7 blocks
    blind          no frames, the language model alone

This file is written to be read. Batches are padded, keys and values are computed where they are used, and nothing is
packed. The program that trains the model is faster, and its tests compare it with this file.

Letters: B samples, S tokens of the longest sample, T frames of the longest, P frames of all samples, N tokens of a
frame (CLS and patches), D encoder width, Q query width, E language width.
"""

from dataclasses import dataclass
from math import isqrt

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Dinov2Model, LlamaModel
from transformers import initialization as init
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from .configuration_fvlm import FvlmConfig


@dataclass
class FvlmOutput(CausalLMOutputWithPast):
    """`visual_tokens` are those of all frames (P x tokens per frame, E), sample after sample."""

    visual_tokens: torch.Tensor | None = None


# --- connectors: the parameters between encoder and language model ---


class QueryConnector(nn.Module):
    """Queries into the encoder, what they read into the language model, and back."""

    def __init__(self, config: FvlmConfig):
        super().__init__()
        query, width, language = config.query_dim, config.vision_config.hidden_size, config.text_config.hidden_size
        self.visual_scale = config.visual_scale
        self.query_input_proj = nn.Linear(query, width, bias=False)  # a bias would outweigh the query
        self.output_proj = nn.Linear(width, width)
        self.dino_to_llm = nn.Linear(width, language)
        self.llm_to_query = nn.Linear(language, query)
        self.q_static = nn.Parameter(torch.empty(query))
        self.q_init = nn.Parameter(torch.empty(query))

    def project(self, read_PD):
        """What the queries read -> visual tokens (P, E)."""
        return self.dino_to_llm(self.output_proj(read_PD)) * self.visual_scale


class PooledConnector(nn.Module):
    """A fixed pooling of a frame's patches, then one linear layer."""

    def __init__(self, config: FvlmConfig):
        super().__init__()
        vision = config.vision_config
        self.visual_scale = config.visual_scale
        self.side = config.image_size // vision.patch_size  # patches
        self.tokens = isqrt(config.tokens_per_frame)  # per side of a frame
        self.shuffle = config.architecture == "pixel_shuffle"
        self.block = max(1, self.side // self.tokens) if self.shuffle else 1  # patches per side of a token
        self.dino_to_llm = nn.Linear(vision.hidden_size * self.block**2, config.text_config.hidden_size)

    def project(self, features_PND):
        """Final features of CLS and patches -> visual tokens (P x tokens, E)."""
        patches = features_PND[:, 1:].transpose(1, 2).unflatten(2, (self.side, self.side))  # P D side side
        if self.shuffle:
            size = self.tokens * self.block
            resized = F.interpolate(patches, size=(size, size), mode="bilinear", antialias=size < self.side)
            # p d (h b1) (w b2) -> p (h w) (b1 b2 d)
            blocks = resized.unflatten(3, (self.tokens, self.block)).unflatten(2, (self.tokens, self.block))
            pooled = blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        else:
            pooled = F.adaptive_avg_pool2d(patches, self.tokens).flatten(2).transpose(1, 2)
        return self.dino_to_llm(pooled).flatten(0, 1) * self.visual_scale


# --- the model ---


class FvlmPreTrainedModel(PreTrainedModel):
    config_class = FvlmConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "text")
    accepts_loss_kwargs = False  # the loss is a mean over the batch
    _no_split_modules = ["Dinov2Layer", "LlamaDecoderLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        """Only where a checkpoint has no tensor: `init` leaves loaded ones as they are, `nn.init` would not."""
        if isinstance(module, QueryConnector):
            init.normal_(module.q_static, std=self.config.query_init_std)
            init.normal_(module.q_init, std=self.config.query_init_std)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)


class FvlmForConditionalGeneration(FvlmPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "language_model.embed_tokens.weight"}

    def __init__(self, config: FvlmConfig):
        super().__init__(config)
        if config.architecture != "blind":
            self.vision_model = Dinov2Model._from_config(config.vision_config)
            self.connector = (QueryConnector if config.architecture == "foveated" else PooledConnector)(config)
        self.language_model = LlamaModel._from_config(config.text_config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value):
        self.language_model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    @property
    def modes(self) -> tuple[str, ...]:
        """How frames may be read: the first one in training, the last one when text is generated.

        coarse_fine     every frame with the static query, then again with the queries that follow from it
        coarse_only     every frame with the static query
        autoregressive  frame after frame, each with the query that follows from all before it
        direct          without queries
        """
        if self.config.architecture != "foveated":
            return ("direct",)
        if not self.config.fine_passes:
            return ("coarse_only",)
        return ("coarse_fine", "coarse_only", "autoregressive")

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        pixel_values=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        mode=None,
        use_cache=None,
        logits_to_keep=0,
        prompt_mask=None,
        **kwargs,
    ):
        """
        input_ids      (B, S), with `config.frame_token_id` where a visual token goes
        attention_mask (B, S), 0 where a row is padded, left or right
        pixel_values   (B, T, 3, image_size, image_size), normalised; a row's frames come first, padding follows
        labels         (B, S), -100: not scored. The loss is the mean over all scored tokens, in nats
        mode           one of `modes`; None: the first with labels, else the last
        prompt_mask    (B, S), the attention mask where `generate` has made a (B, 1, S, L) one of it
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        visual, coarse_embeds = None, None
        if pixel_values is not None and self.config.architecture != "blind":
            mode = mode or self.modes[0 if labels is not None else -1]
            if mode not in self.modes:
                raise ValueError(f"mode is {mode!r}; this model has {', '.join(self.modes)}")
            mask_BS = attention_mask if prompt_mask is None else prompt_mask
            mask_BS = torch.ones_like(input_ids) if mask_BS is None else mask_BS  # `generate` drops a mask of ones
            places, frames = self._places(input_ids, mask_BS, pixel_values)
            visual, coarse = self._visual_tokens(frames, inputs_embeds, places, mask_BS, mode)
            coarse_embeds = None if coarse is None else places.fill(inputs_embeds, coarse)
            inputs_embeds = places.fill(inputs_embeds, visual)
        if position_ids is None and attention_mask is not None and past_key_values is None:
            position_ids = _positions(attention_mask)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = cross_entropy(logits, labels)
            if self.config.lambda_coarse > 0 and coarse_embeds is not None:
                coarse_logits = self.lm_head(self._hidden(coarse_embeds, mask_BS))
                loss = loss + self.config.lambda_coarse * cross_entropy(coarse_logits, labels)
        return FvlmOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            visual_tokens=visual,
        )

    def _visual_tokens(self, frames, inputs_embeds, places, mask_BS, mode):
        """The visual tokens of a mode; for coarse_fine also those of the coarse pass."""
        hidden_states, features = self._encode(frames)
        if mode == "direct":
            return self.connector.project(features), None
        if mode == "autoregressive":
            return self._read_in_turn(hidden_states, features, inputs_embeds, places, mask_BS), None
        static_PQ = self.connector.q_static.expand(len(frames), -1)
        visual = coarse = self._read(static_PQ, hidden_states, features)
        if mode == "coarse_only":
            return visual, None
        end = int(places.column.max()) + 1 if len(frames) else 0  # nothing behind the last frame changes a query
        for _ in range(self.config.fine_passes):
            embeds = places.fill(inputs_embeds, visual)
            hidden = self._hidden(embeds[:, :end], mask_BS[:, :end])
            query_PQ = self._query(hidden[places.row, places.column - 1], places.first)
            visual = self._read(query_PQ, hidden_states, features)
        return visual, coarse

    def _encode(self, frames):
        """What enters each layer of the encoder, a list of (P, N, D), and the features after the final norm."""
        outputs = self.vision_model(frames, output_hidden_states=True)
        return list(outputs.hidden_states[:-1]), outputs.last_hidden_state

    def _read(self, query_PQ, hidden_states, features):
        """Visual tokens (P, E): each query reads its frame.

        A deep query is one more token that passes through all layers. It attends to CLS and patches, which do not
        attend to it. A shallow query attends once, to the final features with the last layer's keys and values.
        """
        layers, x = self.vision_model.encoder.layer, self.connector.query_input_proj(query_PQ)[:, None]
        if not self.config.deep_query:
            x = self._attend(layers[-1], x, features)
        else:
            for layer, states in zip(layers, hidden_states, strict=True):
                seen = self._attend(layer, layer.attention.q_proj(layer.norm1(x)), states)
                x = x + layer.layer_scale1(layer.attention.o_proj(seen))
                x = x + layer.layer_scale2(layer.mlp(layer.norm2(x)))
        return self.connector.project(self.vision_model.layernorm(x)[:, 0])

    def _attend(self, layer, query, states):
        """Attention of queries (P, 1, D) to a layer's keys and values of `states` (P, N, D)."""
        states = layer.norm1(states)
        heads = (self.config.vision_config.num_attention_heads, -1)
        query, key, value = (
            x.unflatten(2, heads).transpose(1, 2)
            for x in (query, layer.attention.k_proj(states), layer.attention.v_proj(states))
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    def _query(self, hidden, first):
        """Queries from the hidden states of the tokens before them; where no token is before, the initial query."""
        query = self.connector.llm_to_query(hidden)
        return torch.where(first[:, None], self.connector.q_init.to(query.dtype), query)

    @torch.no_grad()
    def _read_in_turn(self, hidden_states, features, inputs_embeds, places, mask_BS):
        """Column by column with a cache: what is before a frame makes its query, and its token enters the sequence."""
        embeds, positions = inputs_embeds.clone(), _positions(mask_BS)
        cache = DynamicCache(config=self.config.text_config)
        visual = embeds.new_zeros(len(places.row), embeds.shape[2])
        done, before = 0, embeds.new_zeros(len(embeds), embeds.shape[2])
        for column in places.column.unique().tolist():  # ascending
            if column > done:
                before = self.language_model(
                    inputs_embeds=embeds[:, done:column],
                    attention_mask=mask_BS[:, :column],
                    position_ids=positions[:, done:column],
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state[:, -1]
                done = column
            here = places.column == column
            query = self._query(before[places.row[here]], places.first[here])
            visual[here] = self._read(query, [states[here] for states in hidden_states], features[here])
            embeds[places.row[here], column] = visual[here]
        return visual

    def _hidden(self, embeds, mask_BS):
        return self.language_model(
            inputs_embeds=embeds, attention_mask=mask_BS, position_ids=_positions(mask_BS), use_cache=False
        ).last_hidden_state

    def _places(self, input_ids, mask_BS, pixel_values):
        """Where visual tokens go, and the real frames (P, 3, side, side)."""
        visual_BS = (input_ids == self.config.frame_token_id) & mask_BS.bool()
        row, column = visual_BS.nonzero(as_tuple=True)
        tokens, longest = self.config.tokens_per_frame, pixel_values.shape[1]
        count_B = visual_BS.sum(1)
        if int(count_B.max()) != longest * tokens or bool((count_B % tokens).any()):
            raise ValueError(
                f"a row has {int(count_B.max())} frame tokens (id {self.config.frame_token_id}), but {longest} frames "
                f"of {tokens} each; make the inputs with the processor"
            )
        real_BT = torch.arange(longest, device=count_B.device) < count_B[:, None] // tokens
        return Places(row, column, _positions(mask_BS)[row, column] == 0), pixel_values[real_BT]

    def prepare_inputs_for_generation(self, input_ids, pixel_values=None, is_first_iteration=False, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if is_first_iteration or not kwargs.get("use_cache", True):  # later the cache holds the visual tokens
            inputs["pixel_values"] = pixel_values
            inputs["prompt_mask"] = kwargs.get("attention_mask")
        return inputs


@dataclass
class Places:
    """Row and column of each visual token, sample after sample; `first`: no token is before it."""

    row: torch.Tensor
    column: torch.Tensor
    first: torch.Tensor

    def fill(self, embeds, visual):
        """Embeddings (B, S, E) with visual tokens at their places."""
        return embeds.index_put((self.row, self.column), visual.to(embeds.dtype))


def _positions(mask_BS):
    """The place of each token among the real ones of its row."""
    return (mask_BS.long().cumsum(1) - 1).clamp(min=0)


def cross_entropy(logits, labels):
    """Mean over the scored tokens, each predicted from the token before it, in float32 or finer."""
    logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / (labels != -100).sum().clamp(min=1)


__all__ = ["FvlmForConditionalGeneration", "FvlmPreTrainedModel"]
