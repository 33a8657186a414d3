"""Small models and batches that the tests of the model share."""

from dataclasses import replace
from functools import partial
from itertools import accumulate

import torch
from torch.nn import functional as F
from transformers import Dinov2Model
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from benchmarks.obvious import exported, normalised, outputs_of, padded
from fvlm.batch import Batch
from fvlm.config import schema
from fvlm.config.study_file import read_yaml
from fvlm.model.build import build_model
from fvlm.model.foveated import VideoLanguageModel
from fvlm.model.generate import Reading, written
from fvlm.use.exported.modeling_fvlm import FvlmForConditionalGeneration
from tests.config_cases import CONFIG

IMAGE = 56  # pixels; 4 x 4 patches
VOCABULARY = 61
SEEING = (("foveated", "coarse_only"), ("foveated", "coarse_fine"), ("foveated", "autoregressive"))
EVERY = (*SEEING, ("multi_token", "direct"), ("pixel_shuffle", "direct"))
ALL = (*EVERY, ("blind", "direct"))


def configuration(architecture: str = "foveated", encoder=None, language=None, **changes) -> schema.Model:
    """A tiny model's configuration; `encoder` and `language` change single numbers of the sizes."""
    sizes = {
        "encoder": schema.EncoderSize(
            **{"name": "tiny", "width": 32, "layers": 3, "heads": 4, "image": IMAGE, **(encoder or {})}
        ),
        "language": schema.LanguageSize(
            **{"name": "tiny", "width": 24, "ffn": 40, "layers": 2, "heads": 4, "kv_heads": 2,
               "vocabulary": VOCABULARY, **(language or {})}
        ),
    }  # fmt: skip
    settings = {
        "architecture": architecture,
        "deep_query": True,
        "fine_pass": True,
        "fine_passes": 1,
        "query_dim": 16,
        "query_init_std": 1.0,
        "visual_scale": 0.14,
        "lambda_coarse": 0.0,
        "tokens_per_frame": 49 if architecture == "pixel_shuffle" else 4,
    }
    return schema.Model(**{**settings, **sizes, **changes})


def published(encoder: str, language: str) -> dict:
    """Sizes of config/models.yaml, without weights."""
    sizes = read_yaml(CONFIG / "models.yaml")
    return {
        "encoder": {"image": 224, **sizes["encoders"][encoder], "name": encoder, "weights": None},
        "language": {**sizes["languages"][language], "name": language, "weights": None},
    }


def tiny(architecture: str = "foveated", seed: int = 0, **changes) -> VideoLanguageModel:
    """In float64, so that what should be equal is equal to many digits."""
    return build_model(configuration(architecture, **changes), seed).double()


def sample(frames: int, text: int, seed: int, static: bool = False, image: int = IMAGE, question: int = 0) -> Batch:
    """Random content; `static`: one frame at all positions; `question` first tokens before the frames.

    About half of the tokens count.
    """
    draw = torch.Generator().manual_seed(seed)
    distinct = min(frames, 1) if static else frames
    return Batch(
        frames=torch.randint(0, 256, (distinct, image, image, 3), dtype=torch.uint8, generator=draw),
        frame_index=torch.zeros(frames, dtype=torch.int64) if static else torch.arange(frames),
        frame_counts=torch.tensor([frames]),
        token_ids=torch.randint(0, VOCABULARY, (text,), generator=draw),
        token_counts=torch.tensor([text]),
        loss_mask=torch.rand(text, generator=draw) < 0.6,
        keys=[str(seed)],
        sources=["random"],
        question_counts=torch.tensor([question]),
    )


def joined(samples: list[Batch]) -> Batch:
    """One batch of several."""
    starts = [0, *accumulate(len(part.frames) for part in samples[:-1])]
    return Batch(
        frames=torch.cat([part.frames for part in samples]),
        frame_index=torch.cat([part.frame_index + start for part, start in zip(samples, starts, strict=True)]),
        frame_counts=torch.cat([part.frame_counts for part in samples]),
        token_ids=torch.cat([part.token_ids for part in samples]),
        token_counts=torch.cat([part.token_counts for part in samples]),
        loss_mask=torch.cat([part.loss_mask for part in samples]),
        keys=[key for part in samples for key in part.keys],
        sources=[source for part in samples for source in part.sources],
        question_counts=torch.cat([part.question_counts for part in samples]),
    )


def mixed() -> list[Batch]:
    """Text only, one frame, a static image, short videos and the longest one."""
    return [
        sample(0, 9, seed=1),
        sample(1, 7, seed=2),
        sample(4, 12, seed=3, static=True),
        sample(3, 5, seed=4),
        sample(64, 20, seed=5),
        sample(6, 31, seed=6),
        sample(0, 1, seed=7),
    ]


def both_orders() -> list[Batch]:
    """As `mixed`, and samples that ask first: of one frame and of many, a static one, one that only asks."""
    return [
        *mixed(),
        sample(5, 11, seed=8, question=4),
        sample(1, 8, seed=9, question=5),
        sample(4, 12, seed=10, static=True, question=1),
        sample(2, 6, seed=11, question=6),
        sample(7, 16, seed=12, question=9),
    ]


def visual_tokens(model: VideoLanguageModel, batch: Batch, mode: str) -> torch.Tensor:
    """The visual tokens (P, E) of a mode."""
    return model.visual_tokens(batch, model.llm.embed(batch.token_ids), model.plan(batch), mode)[0]


def exact(model: VideoLanguageModel) -> FvlmForConditionalGeneration:
    """The exported model with a model's weights, all of it in their dtype: Llama's norm computes in float32."""
    reference = exported(model)
    for module in reference.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = partial(_norm, module)
    if hasattr(model.connector, "pool"):  # the fast code's fixed matrix was made in float32
        side = model.config.encoder.side
        patches = torch.eye(side * side, dtype=reference.dtype).view(side * side, 1, side, side)
        model.connector.pool = model.connector.pooled(patches, model.config).reshape(side * side, -1).T.contiguous()
    return reference


def _norm(norm: LlamaRMSNorm, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def logits_of(model: VideoLanguageModel, batch: Batch, mode: str) -> torch.Tensor:
    """Logits (S, V) of one sample by the exported model, visual tokens and text in the order of the sequence."""
    reference = exact(model)
    return outputs_of(reference, padded(batch, reference), mode).logits[0]


def sums_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (B,) of the labels (B, S), summed over each sample's scored tokens."""
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none").sum(1)


def by_argmax(model: VideoLanguageModel, batch: Batch, count: int, mode: str) -> list[int]:
    """The most likely next token, `count` times, each from a forward pass of the exported model over all tokens."""
    reference, answer = exact(model), []
    for _ in range(count):
        ids = torch.cat([batch.token_ids, torch.tensor(answer, dtype=batch.token_ids.dtype)])
        scored = torch.zeros(len(ids), dtype=torch.bool)
        longer = replace(batch, token_ids=ids, token_counts=torch.tensor([len(ids)]), loss_mask=scored)
        with torch.no_grad():
            answer.append(int(outputs_of(reference, padded(longer, reference), mode).logits[0, -1].argmax()))
    return answer


def generated(model: VideoLanguageModel, batch: Batch, end: int | None, count: int, mode: str) -> list[int]:
    """The answer to a sample, at most `count` tokens and without the token `end`, with the language model's cache."""
    question, rest = batch.token_ids.tensor_split([int(batch.question_counts)])
    reading = Reading(model, mode, question)
    if model.config.variant.sees and len(batch.frames):
        if mode == "coarse_fine":
            reading.take_frames(visual_tokens(model, batch, mode))
        else:
            reading.read_frames(model.encode(batch.frames).select(batch.frame_index))
    reading.read_text(rest.tolist())
    return list(written(reading, end, count))


def states_by_mask(dino: Dinov2Model, frames: torch.Tensor, query_UD: torch.Tensor) -> torch.Tensor:
    """DINOv2 over the patches and, last, one more token that no patch sees and that does not see itself."""
    tokens = torch.cat([dino.embeddings(normalised(frames, torch.float64)), query_UD[:, None]], dim=1)
    length = tokens.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool)
    mask[:, -1] = False
    hidden = dino.encoder(tokens, attention_mask=mask[None, None]).last_hidden_state
    return dino.layernorm(hidden)
