"""Samples to look at: some frames with their times, and all that is said, as they stand in the shards."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image
from tokenizers import Tokenizer

from fvlm.data.shards.index import Index
from fvlm.data.shards.samples import decode_frames, sample_text
from fvlm.data.shards.tar import read_sample
from fvlm.errors import UserError

SAMPLES, FRAMES = 12, 8  # of a source; of a sample
SIDE = 128  # pixels of a frame on the page
LONGEST = 1200  # characters of one turn that are shown


@dataclass(frozen=True)
class Shown:
    """One sample on the page.

    pictures    (source of an <img>, words under it) of each frame
    turns       (who, what) in order
    """

    key: str
    about: str
    pictures: list[tuple[str, str]]
    turns: list[tuple[str, str]]


def show(index: Index, row: int, results: Path, prompt: str, tokenizer: Tokenizer, frames: list[int] | None = None):
    """A sample as the page has it.

    frames      which to show; None: at most FRAMES of them, evenly spread
    prompt      what the user asks where there is only a caption
    raises      UserError naming shard and key if an image cannot be decoded
    """
    file, key = results / str(index.shards[index.shard[row]]), str(index.keys[row])
    members = read_sample(file, int(index.offset[row]), int(index.length[row]), key)
    said = sample_text(members, prompt)
    try:
        images = decode_frames(members)
    except ValueError as error:
        raise UserError(f"{file}: sample {key!r}: a frame cannot be decoded ({error}); make the shard again") from error
    chosen = spread(len(images), FRAMES) if frames is None else frames
    times = said.get("frame_times") if index.kind == "video" else None
    count = len(images)
    pictures = [(picture(images[i]), _when(i, count, times)) for i in chosen]
    about = f"{count} {'frame' if count == 1 else 'frames'}, " if count else ""
    return Shown(key, f"{about}{index.text_tokens[row]:,} text tokens", pictures, turns_of(said, tokenizer))


def spread(count: int, most: int) -> list[int]:
    """At most `most` of 0 ... count - 1, evenly, with the first and the last."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def _when(frame: int, count: int, times: object) -> str:
    """The words under a frame; shards from elsewhere may not say when their frames were shown, or say it otherwise."""
    if isinstance(times, list) and frame < len(times) and isinstance(times[frame], int | float):
        return f"{times[frame]:.4g} s"
    return f"{frame + 1} of {count}" if count > 1 else ""


def picture(frame: np.ndarray) -> str:
    """A frame (H, W, 3) as the source of an <img>."""
    small = np.asarray(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return data_uri(simplejpeg.encode_jpeg(small, quality=75, colorspace="RGB"), "jpeg")


def data_uri(content: bytes, form: str) -> str:
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"


def turns_of(said: dict, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Who says what in a sample, in order; of a preference pair both answers."""
    if said.get("token_ids"):
        turns = [("tokenized", tokenizer.decode([int(i) for i in said["token_ids"]], skip_special_tokens=False))]
    elif said.get("messages"):
        turns = [(turn["role"], turn["content"]) for turn in said["messages"]]
    elif "chosen" in said:
        turns = [("user", said.get("user", "")), ("chosen", said["chosen"]), ("rejected", said.get("rejected", ""))]
    else:
        turns = [("user", said.get("user", "")), ("assistant", said["assistant"])]
    if isinstance(said.get("options"), list):
        options = [("✓ " if i == said.get("correct") else "") + _text(what) for i, what in enumerate(said["options"])]
        turns.append(("options", " · ".join(options)))
    return [(who, shortened(_text(what))) for who, what in turns]


def _text(content: object) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def shortened(text: str, longest: int = LONGEST) -> str:
    left = len(text) - longest
    return text if left <= 0 else f"{text[:longest]} … ({left:,} more characters)"
