"""The page of `fvlm look`: packs what the runs did into JSON and fills look.html, which draws it."""

import base64
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
import simplejpeg

from fvlm import pages
from fvlm.files import write_beside
from fvlm.use.looking import Looked, Sample

QUALITY = 70  # of the frames' JPEGs
BRIGHTEST = 0.995  # share of the patches below full brightness
PASSES = {"fine": "the query that the model makes from what it saw before", "coarse": "the same query for every frame"}


@dataclass(frozen=True)
class PageVideo:
    """One video on the page, and what each run did with it, with the frames as this run was shown them."""

    sample: Sample
    runs: list[tuple[Sample, Looked]]


def write_page(path: Path, videos: list[PageVideo]) -> None:
    """Write the page, one HTML file that refers to no other."""
    names = list(dict.fromkeys(looked.run.name for video in videos for _, looked in video.runs))
    template = Path(__file__).with_name("look.html")
    page = pages.render(template, names=names, videos=[content_of(video) for video in videos])
    # A text may hold half of a surrogate pair, which JSON allows and UTF-8 does not.
    write_beside(path, lambda part: part.write_text(page, encoding="utf-8", errors="replace"))


def content_of(video: PageVideo) -> dict:
    """Return what the script of the page draws of one video."""
    pictures: dict[str, int] = {}  # of all runs; equal frames are there once
    runs = [_run(sample, looked, pictures) for sample, looked in video.runs]
    sample = video.sample
    return {
        "name": sample.name,
        "about": sample.about,
        "question": sample.question,
        "reference": sample.reference,
        "pictures": list(pictures),
        "runs": runs,
    }


def _run(sample: Sample, looked: Looked, pictures: dict[str, int]) -> dict:
    # A run without encoder shows the frames that it does not see.
    frames = looked.shown if len(looked.shown) else np.arange(len(sample.frames))
    places = {int(i): pictures.setdefault(_picture(sample.frames[i]), len(pictures)) for i in np.unique(frames)}
    times = None if sample.times_s is None else [round(float(sample.times_s[i]), 2) for i in frames]
    return {
        "name": looked.run.name,
        "about": f"{looked.run.model.variant.title}, {looked.mode.replace('_', ' ')}",
        "frames": [places[int(i)] for i in frames],
        "times": times,
        "passes": [_pass(name, *looked.passes[name]) for name in PASSES if name in looked.passes],
        "scale": round(map_scale(looked), 2),
        "maps": {name: _map(patches, map_scale(looked)) for name, (patches, _) in looked.passes.items()},
        "side": looked.run.model.encoder.side,
        "uniform": round(log(looked.run.model.encoder.patches + 1), 3),
        "tokens": looked.tokens,
        "depends": looked.depends.round(4).tolist(),
        "missing": missing(looked),
    }


def _pass(name: str, patches: np.ndarray, entropy: np.ndarray) -> dict:
    return {"name": name, "about": PASSES[name], "entropy": entropy.round(3).tolist()}


def map_scale(looked: Looked) -> float:
    """Return the attention that gets the full brightness, in multiples of uniform attention."""
    values = [patches * patches.shape[1] for patches, _ in looked.passes.values()]
    return max(1.5, float(np.quantile(np.concatenate(values), BRIGHTEST))) if values else 1.0


def _map(patches: np.ndarray, scale: float) -> str:
    """Return attention (P, N) as one byte per patch: 0 is none, 255 is `scale` times uniform attention or more."""
    relative = patches * patches.shape[1] / scale
    return base64.b64encode((255 * relative.clip(0, 1)).round().astype(np.uint8).tobytes()).decode()


def _picture(frame: np.ndarray) -> str:
    content = simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=QUALITY, colorspace="RGB")
    return pages.data_uri(content, "jpeg")


def missing(looked: Looked) -> str:
    """Return a sentence about what this run does not have; empty if it has all."""
    variant = looked.run.model.variant
    if not variant.sees:
        return "This run has no encoder: it answers without the frames."
    if not variant.queries:
        tokens = looked.run.model.visual_tokens
        return f"This run pools each frame into {tokens} tokens, without a query: there is no attention to show."
    if "fine" not in looked.passes:
        return "This run has no fine pass: every frame is read with the same query."
    return ""
