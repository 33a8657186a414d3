"""Small models and batches that the tests of the model share."""

import torch

from fvlm import schema
from fvlm.batch import Batch
from fvlm.model.build import build_model
from fvlm.model.foveated import VideoLanguageModel

IMAGE = 56  # pixels; 4 x 4 patches
VOCABULARY = 61
SEEING = (("foveated", "coarse_only"), ("foveated", "coarse_fine"), ("foveated", "autoregressive"))
EVERY = (*SEEING, ("multi_token", "direct"), ("pixel_shuffle", "direct"))


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
        "query_dim": 16,
        "query_init_std": 1.0,
        "visual_scale": 0.14,
        "lambda_coarse": 0.0,
        "tokens_per_frame": 49 if architecture == "pixel_shuffle" else 4,
    }
    return schema.Model(**{**settings, **sizes, **changes})


def tiny(architecture: str = "foveated", seed: int = 0, **changes) -> VideoLanguageModel:
    """In float64, so that what should be equal is equal to many digits."""
    return build_model(configuration(architecture, **changes), seed).double()


def sample(frames: int, text: int, seed: int, static: bool = False, image: int = IMAGE) -> Batch:
    """Random content; `static`: one frame at all positions; about half of the tokens count."""
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
    )


def joined(samples: list[Batch]) -> Batch:
    """One batch of several."""
    starts, total = [], 0
    for part in samples:
        starts.append(total)
        total += len(part.frames)
    return Batch(
        frames=torch.cat([part.frames for part in samples]),
        frame_index=torch.cat([part.frame_index + start for part, start in zip(samples, starts, strict=True)]),
        frame_counts=torch.cat([part.frame_counts for part in samples]),
        token_ids=torch.cat([part.token_ids for part in samples]),
        token_counts=torch.cat([part.token_counts for part in samples]),
        loss_mask=torch.cat([part.loss_mask for part in samples]),
        keys=[key for part in samples for key in part.keys],
        sources=[source for part in samples for source in part.sources],
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
