"""Samples as the page shows them: some frames with their times, and the texts, as they are in the shards."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image
from tokenizers import Tokenizer

from fvlm.data.shards.index import Index
from fvlm.data.shards.samples import decode_frames, sample_text
from fvlm.errors import UserError
from fvlm.pages import data_uri

SAMPLES, FRAMES = 12, 8  # of a source; of a sample
SIDE = 128  # pixels of a frame on the page
LONGEST = 1200  # characters of one turn that are shown


@dataclass(frozen=True)
class Shown:
    """One sample on the page.

    pictures    (`src` of an <img>, label under it) of each frame
    turns       (speaker, text) in order
    """

    key: str
    about: str
    pictures: list[tuple[str, str]]
    turns: list[tuple[str, str]]


def show(index: Index, row: int, results: Path, prompt: str, tokenizer: Tokenizer, frames: list[int] | None = None):
    """Return a sample as the page shows it.

    frames      numbers of the frames to show; None: at most FRAMES of them, evenly spaced
    prompt      the user's turn if the sample has only a caption
    raises      UserError naming shard and key if an image cannot be decoded
    """
    file, key = index.file_of(row, results), str(index.keys[row])
    members = index.read(row, results)
    text = sample_text(members, prompt)
    try:
        images = decode_frames(members)
    except ValueError as error:
        raise UserError(f"{file}: sample {key!r}: a frame cannot be decoded ({error}); make the shard again") from error
    # With the first and the last frame.
    spread = np.linspace(0, len(images) - 1, min(len(images), FRAMES)).round().astype(int).tolist()
    chosen = spread if frames is None else frames
    times = text.get("frame_times") if index.kind == "video" else None
    count = len(images)
    pictures = [(picture(images[i]), _label(i, count, times)) for i in chosen]
    about = f"{count} {'frame' if count == 1 else 'frames'}, " if count else ""
    return Shown(key, f"{about}{index.text_tokens[row]:,} text tokens", pictures, turns_of(text, tokenizer))


def _label(frame: int, count: int, times: object) -> str:
    """Return the label under a frame; finished shards may lack the times of their frames, or have another format."""
    if isinstance(times, list) and frame < len(times) and isinstance(times[frame], int | float):
        return f"{times[frame]:.4g} s"
    return f"{frame + 1} of {count}" if count > 1 else ""


def picture(frame: np.ndarray) -> str:
    """Return a frame (H, W, 3) as the `src` of an <img>."""
    small = np.asarray(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return data_uri(simplejpeg.encode_jpeg(small, quality=75, colorspace="RGB"), "jpeg")


def turns_of(text: dict, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return (speaker, text) of each turn of a sample; of a preference pair both answers."""
    if text.get("token_ids"):
        turns = [("tokenized", tokenizer.decode([int(i) for i in text["token_ids"]], skip_special_tokens=False))]
    elif text.get("messages"):
        turns = [(turn["role"], turn["content"]) for turn in text["messages"]]
    elif "chosen" in text:
        turns = [("user", text.get("user", "")), ("chosen", text["chosen"]), ("rejected", text.get("rejected", ""))]
    else:
        turns = [("user", text.get("user", "")), ("assistant", text["assistant"])]
    if isinstance(text.get("options"), list):
        options = [("✓ " if i == text.get("correct") else "") + _text(one) for i, one in enumerate(text["options"])]
        turns.append(("options", " · ".join(options)))
    return [(speaker, shortened(_text(content))) for speaker, content in turns]


def _text(content: object) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def shortened(text: str, longest: int = LONGEST) -> str:
    left = len(text) - longest
    return text if left <= 0 else f"{text[:longest]} … ({left:,} more characters)"
