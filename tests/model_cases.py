"""Small models and batches that the tests of the model share."""

from functools import lru_cache
from itertools import accumulate

import torch
from transformers import Dinov2Model, LlamaModel

from fvlm.batch import Batch
from fvlm.config import schema
from fvlm.config.study_file import read_yaml
from fvlm.model.build import build_model
from fvlm.model.encoder import PIXEL_MEAN, PIXEL_STD
from fvlm.model.foveated import VideoLanguageModel
from fvlm.model.pretrained import encoder_config, language_config
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


def by_argmax(model: VideoLanguageModel, batch: Batch, count: int, mode: str) -> list[int]:
    """The most likely next token, `count` times, each from a forward pass over the whole sequence."""
    text, question = model.llm.embed(batch.token_ids), int(batch.question_counts)
    tokens = torch.cat([text[:question], visual_tokens(model, batch, mode), text[question:]])
    answer = []
    for _ in range(count):
        answer.append(int(model.llm.logits(language_states(model, tokens)[-1]).argmax()))
        tokens = torch.cat([tokens, model.llm.embed(torch.tensor(answer[-1:]))])
    return answer


# --- by hand: one sample, frame by frame, every sequence computed anew by the models of transformers ---


@lru_cache
def _dinov2(size: schema.EncoderSize) -> Dinov2Model:
    return Dinov2Model(encoder_config(size)).eval()


@lru_cache
def _llama(size: schema.LanguageSize) -> LlamaModel:
    return LlamaModel(language_config(size)).eval()


def dinov2_of(model: VideoLanguageModel) -> Dinov2Model:
    """transformers' encoder with the weights of a model."""
    dino = _dinov2(model.config.encoder)
    dino.load_state_dict(model.dino.dino.state_dict())
    return dino.to(model.dino.dino.layernorm.weight.dtype)


def pixels_of(frames: torch.Tensor) -> torch.Tensor:
    """(U, 3, side, side) float64, normalised as DINOv2 expects."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (PIXEL_MEAN, PIXEL_STD))
    return ((frames.double() / 255 - mean) / std).permute(0, 3, 1, 2)


def states_by_mask(dino, frames: torch.Tensor, query_UD: torch.Tensor) -> torch.Tensor:
    """DINOv2 over the patches and, last, one more token that no patch sees and that does not see itself."""
    tokens = torch.cat([dino.embeddings(pixels_of(frames)), query_UD[:, None]], dim=1)
    length = tokens.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool)
    mask[:, -1] = False
    hidden = dino.encoder(tokens, attention_mask=mask[None, None]).last_hidden_state
    return dino.layernorm(hidden)


def shallow_by_hand(dino, pixels: torch.Tensor, query_UD: torch.Tensor) -> torch.Tensor:
    """What unprojected queries read from the final features with the heads of the last layer, after the final norm."""
    last, features = dino.encoder.layer[-1], dino(pixels).last_hidden_state
    normed, heads = last.norm1(features), dino.config.num_attention_heads
    key, value = last.attention.k_proj(normed), last.attention.v_proj(normed)
    merged = []
    for k, v, q in zip(key.chunk(heads, 2), value.chunk(heads, 2), query_UD.chunk(heads, 1), strict=True):
        scores = (k @ q[:, :, None])[:, :, 0] / q.shape[1] ** 0.5
        merged.append((scores.softmax(1)[:, None] @ v)[:, 0])
    return dino.layernorm(torch.cat(merged, 1))


def language_states(model: VideoLanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """Hidden states of one sequence (M, E); gradients reach the model's weights."""
    weights = dict(model.llm.llama.named_parameters())
    options = {"inputs_embeds": tokens[None], "use_cache": False}
    return torch.func.functional_call(_llama(model.config.language), weights, (), options).last_hidden_state[0]


def visual_tokens_by_hand(model: VideoLanguageModel, batch: Batch, mode: str) -> torch.Tensor:
    """The visual tokens (P, E) of one sample in a mode of the foveated model."""
    connector, dino = model.connector, dinov2_of(model)
    question = model.llm.embed(batch.token_ids[: int(batch.question_counts)])
    frames = batch.frames[batch.frame_index]

    def read(query, frame):
        token = states_by_mask(dino, frame[None], connector.query_input_proj(query)[None])[:, -1]
        return connector.project(token)

    def query_behind(seen):
        before = torch.cat([question, *seen])
        return connector.llm_to_query(language_states(model, before)[-1]) if len(before) else connector.q_init

    if mode == "autoregressive":
        seen = []
        for frame in frames:
            seen.append(read(query_behind(seen), frame))
        return torch.cat(seen)
    seen = [read(connector.q_static, frame) for frame in frames]
    for _ in range(model.config.fine_passes if mode == "coarse_fine" else 0):
        seen = [read(query_behind(seen[:time]), frame) for time, frame in enumerate(frames)]
    return torch.cat(seen)


def sequence_by_hand(model: VideoLanguageModel, batch: Batch, mode: str) -> torch.Tensor:
    """One sample's tokens (M, E) as the language model reads them."""
    text, question = model.llm.embed(batch.token_ids), int(batch.question_counts)
    return torch.cat([text[:question], visual_tokens_by_hand(model, batch, mode), text[question:]])
