"""Parameters and FLOPs of a model, exact and without building it. No torch here.

A FLOP count is that of the matrix products and of attention as the code in `fvlm.model` runs them, 2 per
multiply-add; it leaves out norms, activations and softmax, as is usual (Kaplan et al. 2020, Hoffmann et al.
2022). Attention counts all pairs of a sample's tokens, causal or not. Counts are those of samples that run
alone: the tokens that only fill a batch's rows are not training and do not count.

In the backward pass a matrix product costs its forward count once more if its weight is trained and once more
if its input has a gradient. Nothing flows to pixels, and a frozen part costs only what must pass through it.

Arguments may be numbers or numpy arrays of one shape:

frames           visual positions of a sample
text_tokens      its text tokens
scored_tokens    text tokens that the loss is summed over
encoded_frames   its distinct frames (1 for an image that is repeated); None: all are distinct
question_tokens  text tokens that stand before the frames
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fvlm.config import schema

Number = float | np.ndarray


@dataclass(frozen=True)
class Trained:
    """1 for a part whose weights are trained, 0 for a frozen part; all 0 counts a forward pass alone."""

    connector: int = 0
    dino: int = 0
    llm: int = 0

    @classmethod
    def all_but(cls, frozen: Iterable[str]) -> "Trained":
        return cls(**{part: int(part not in tuple(frozen)) for part in ("connector", "dino", "llm")})

    @property
    def any(self) -> int:
        return max(self.connector, self.dino, self.llm)


def parameters(model: schema.Model) -> dict[str, int]:
    """Return the parameters of dino, llm and connector, and their total (tied embeddings count once)."""
    counts = {
        "dino": _dino_parameters(model.encoder) if model.variant.sees else 0,
        "llm": _llm_parameters(model.language),
        "connector": model.variant.connector_parameters,
    }
    return {**counts, "total": sum(counts.values())}


def _dino_parameters(size: schema.EncoderSize) -> int:
    width, hidden = size.width, size.width * size.mlp_ratio
    side = size.position_side or size.side
    embeddings = 3 * size.patch**2 * width + width  # patches
    embeddings += (side**2 + 1) * width + 2 * width  # positions with that of CLS; CLS and mask token
    attention = 4 * (width * width + width)
    mlp = width * hidden + hidden + hidden * width + width
    norms_and_scales = 2 * 2 * width + 2 * width
    return embeddings + size.layers * (attention + mlp + norms_and_scales) + 2 * width


def _llm_parameters(size: schema.LanguageSize) -> int:
    norms = 2 * size.width
    return size.vocabulary * size.width + size.layers * (_llm_weights(size) + norms) + size.width


def _llm_weights(size: schema.LanguageSize) -> int:
    """Weights of the matrix products of one layer."""
    shared = size.width // size.heads * size.kv_heads
    return 2 * size.width**2 + 2 * size.width * shared + 3 * size.width * size.ffn


def training_flops(model: schema.Model, freeze: Iterable[str], *lengths: Number, **more: Number) -> Number:
    """Return the forward and backward FLOPs of samples in the training mode.

    freeze           parts that are not trained: connector, dino, llm
    lengths, more    frames, text_tokens, scored_tokens, encoded_frames, question_tokens
    """
    return _flops(model, model.training_mode, Trained.all_but(freeze), *lengths, **more)


def forward_flops(model: schema.Model, *lengths: Number, mode: str | None = None, **more: Number) -> Number:
    """Return the FLOPs of scoring samples in a mode; None: the training mode. Lengths as in `training_flops`."""
    return _flops(model, mode or model.training_mode, Trained(), *lengths, **more)


def preference_flops(
    model: schema.Model,
    freeze: Iterable[str],
    frames: Number,
    chosen_tokens: Number,
    rejected_tokens: Number,
    scored_chosen: Number,
    scored_rejected: Number,
    encoded_frames: Number | None = None,
    question_tokens: Number = 0,
    reference: bool = True,
) -> Number:
    """Return the FLOPs of training on pairs of answers: forward and backward, and the `reference`'s forward pass.

    The answers share their frames: both are encoded, and read with the static query, once. Frames are those of one
    answer's sample, text tokens those of the chat with each of the answers.
    """
    encoded = frames if encoded_frames is None else encoded_frames
    total = 0.0
    for half in (
        (frames, chosen_tokens, scored_chosen, encoded, question_tokens),
        (frames, rejected_tokens, scored_rejected, 0 * encoded, question_tokens),
    ):
        total = total + training_flops(model, freeze, *half)
        if reference:
            total = total + forward_flops(model, *half)
    return total


def _flops(model, mode, trained, frames, text_tokens, scored_tokens, encoded_frames=None, question_tokens=0) -> Number:
    encoded = frames if encoded_frames is None else encoded_frames
    sees = float(model.variant.sees)
    frames, encoded = sees * np.asarray(frames, float), sees * np.asarray(encoded, float)
    text, scored = np.asarray(text_tokens, float), np.asarray(scored_tokens, float)
    question = np.asarray(question_tokens, float) * (frames > 0)
    total = _visual(model, mode, trained, frames, encoded, question)
    tokens = frames * model.visual_tokens + text
    score = _score(model.language, trained, tokens, scored, _seen(trained) * (frames > 0))
    twice = mode == "coarse_fine" and model.lambda_coarse > 0  # the coarse tokens are scored as well
    total = total + score * (2 if twice else 1)
    return float(total) if total.ndim == 0 else total


def _seen(trained: Trained) -> int:
    """1 if visual tokens have a gradient."""
    return max(trained.connector, trained.dino)


def _visual(model, mode, trained, frames, encoded, question) -> Number:
    """FLOPs of making the visual tokens of a mode."""
    if not model.variant.sees:
        return 0.0 * frames
    total = _encode(model, trained, encoded)
    if mode == "direct":
        return total + _pool(model, trained, encoded)
    if mode == "autoregressive":
        first = question > 0  # the first query comes from the question, if there is one
        pairs = question**2 + frames * question + frames * (frames + 1) / 2
        total = total + _language(model.language, trained, question + frames, pairs, _seen(trained))
        total = total + _predict(model, trained, frames + first)
        return total + _read(model, trained, frames, frames, trained.any)
    total = total + _read(model, trained, encoded, encoded, trained.connector)
    if mode == "coarse_fine":
        tokens = question + frames
        fine = _language(model.language, trained, tokens, tokens**2, _seen(trained))
        fine = fine + _predict(model, trained, frames)
        fine = fine + _read(model, trained, frames, frames, trained.any)
        total = total + model.fine_passes * fine
    return total


def _product(rows: Number, fan_in: int, fan_out: int, weight: Number, inputs: Number) -> Number:
    """A matrix product of `rows` tokens; `weight`, `inputs`: 1 if it needs a gradient."""
    return 2.0 * rows * fan_in * fan_out * (1 + weight + inputs)


def _attention(pairs: Number, width: int, query: Number, key_value: Number) -> Number:
    """Scores and their sum of values: two products forward; backward one per operand that has a gradient."""
    scores = np.maximum(query, key_value)
    return 2.0 * pairs * width * (2 + scores + query + 2 * key_value)


def _encode(model: schema.Model, trained: Trained, frames: Number) -> Number:
    """Phase 1. Deep reading needs only the keys and values of the last layer, shallow reading some more of them."""
    size, dino = model.encoder, trained.dino
    width, tokens = size.width, frames * (size.patches + 1)
    kept = _product(tokens, width, 2 * width, dino, dino)  # keys and values
    rest = _product(tokens, width, (2 + 2 * size.mlp_ratio) * width, dino, dino)
    rest = rest + _attention(tokens * (size.patches + 1), width, dino, dino)
    deep, shallow = (model.variant.keeps == keeps for keeps in ("keys", "last"))
    patches = _product(frames * size.patches, 3 * size.patch**2, width, dino, 0)
    return patches + (size.layers + shallow) * kept + (size.layers - deep) * rest


def _read(model: schema.Model, trained: Trained, queries: Number, frames: Number, has_gradient: int) -> Number:
    """Phase 2 and the connector's layers; `has_gradient`: 1 if the queries have one."""
    size, width, dino = model.encoder, model.encoder.width, trained.dino
    pairs = queries * (size.patches + 1)
    inner = max(has_gradient, dino)
    total = _product(queries, model.query_dim, width, trained.connector, has_gradient)
    if model.variant.keeps == "keys":
        layer = _product(queries, width, (2 + 2 * size.mlp_ratio) * width, dino, inner)
        total = total + size.layers * (layer + _attention(pairs, width, inner, dino))
    else:
        total = total + _attention(pairs, width, has_gradient, dino)
    total = total + _product(queries, width, width, trained.connector, inner)
    return total + _product(queries, width, model.language.width, trained.connector, max(inner, trained.connector))


def _pool(model: schema.Model, trained: Trained, frames: Number) -> Number:
    """The pooling matrix and the linear layer of an architecture without queries."""
    variant = model.variant
    tokens = frames * variant.tokens
    pooling = _product(tokens * variant.rows_per_token, model.encoder.patches, model.encoder.width, 0, trained.dino)
    return pooling + _product(tokens, variant.token_width, model.language.width, trained.connector, trained.dino)


def _predict(model: schema.Model, trained: Trained, frames: Number) -> Number:
    """The query for the next frame from every frame's hidden state."""
    return _product(frames, model.language.width, model.query_dim, trained.connector, trained.any)


def _language(
    size: schema.LanguageSize, trained: Trained, tokens: Number, pairs: Number, has_gradient: Number
) -> Number:
    """All layers over `tokens` tokens that see `pairs` pairs; `has_gradient`: 1 if the tokens' embeddings have one."""
    inner = np.maximum(has_gradient, trained.llm)
    products = _product(tokens, _llm_weights(size), 1, trained.llm, inner)
    return size.layers * (products + _attention(pairs, size.width, inner, inner))


def _score(size: schema.LanguageSize, trained: Trained, tokens: Number, scored: Number, has_gradient: Number) -> Number:
    """All layers over visual and text tokens, and the logits at scored positions."""
    inner = np.maximum(has_gradient, trained.llm)
    logits = _product(scored, size.width, size.vocabulary, trained.llm, inner)
    return _language(size, trained, tokens, tokens**2, has_gradient) + logits
