"""Text and images of a sample in a shard, in all forms that shards have."""

import io
import json
import re
from collections.abc import Iterable

import numpy as np
import simplejpeg
from PIL import Image

from fvlm.data.decode.media import MAX_PIXELS, MAX_SCANNED, SIDE, MediaError
from fvlm.data.decode.video import BROKEN_IMAGE, IMAGE_FORMATS, image_errors, square_image
from fvlm.data.readers.row import joined_parts

# Suffixes after a sample's key: `jpg`, `0.jpg`, `000.jpg`, `frame_0001.jpg`, `image0.png`.
IMAGE = re.compile(r"(?:(?:frame|image|img)?[_-]?(\d+)\.)?(?:jpg|jpeg|png|webp)", re.IGNORECASE)
VIDEO = re.compile(r"(?:.*\.)?(?:mp4|webm|mkv|mov|avi)", re.IGNORECASE)
JPEG_SCAN = b"\xff\xda"  # start of a scan; these bytes do not occur in the data of a scan
JPEG_START, JPEG_END, PNG_START, PNG_END = b"\xff\xd8", b"\xff\xd9", b"\x89PNG", b"IEND"
TAIL = 1024  # last bytes of an image in which its end mark must be; some cameras write a few bytes after the mark


def sample_text(members: dict[str, bytes], prompt: str) -> dict:
    """Return the text of a sample in a form for `encode_chat`, with `file` if it is known.

    prompt      the user's question if the sample has only a caption
    raises      ValueError if there is no text, or the json is not an object in UTF-8
    """
    content = json.loads(members["json"]) if "json" in members else {}
    if not isinstance(content, dict):
        raise ValueError("the json is not an object")
    for name in ("caption", "user", "assistant", "chosen"):
        if not isinstance(content.get(name) or "", str):
            raise ValueError(f"`{name}` is {type(content[name]).__name__}, expected one text")
    if content.get("messages"):
        joined = [{**message, "content": joined_parts(message["content"])} for message in content["messages"]]
        return {**content, "messages": joined}
    if content.get("token_ids") or content.get("assistant"):
        return content
    if content.get("chosen"):
        return {**content, "assistant": content["chosen"]}
    caption = content.get("caption") or members.get("txt", b"").decode("utf-8").strip()
    if not caption:
        raise ValueError("no messages, assistant, token_ids or caption")
    return {**content, "user": prompt, "assistant": caption}


def rejected_text(text: dict) -> dict | None:
    """Return the text with the rejected answer of a preference pair, or None if the sample is no pair."""
    answer = text.get("rejected")
    if not isinstance(answer, str) or not answer or "token_ids" in text or text.get("messages"):
        return None
    return {**text, "assistant": answer}


def image_suffixes(members: Iterable[str]) -> list[str]:
    """The images among a sample's members, sorted by number: 2.jpg comes before 10.jpg."""
    numbered = [(int(match[1] or 0), match[0]) for match in map(IMAGE.fullmatch, members) if match]
    return [suffix for _, suffix in sorted(numbered)]


def video_suffixes(members: Iterable[str]) -> list[str]:
    """The videos among a sample's members; shards for training have none."""
    return sorted(filter(VIDEO.fullmatch, members))


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Return the places of at most `most` of `count` items: item i is at i x count / most, rounded down."""
    return np.arange(min(count, most)) * count // max(min(count, most), 1)


def decode_frames(members: dict[str, bytes], out: np.ndarray | None = None) -> np.ndarray:
    """Return the images of a sample in the order of their numbers, (T, 224, 224, 3) uint8; T = 0 for text.

    out         array (T, 224, 224, 3) to decode into, which saves a copy; of more than T images, T evenly spaced ones
    raises      ValueError that names an image that cannot be decoded, or if `out` has place for more
    """
    suffixes = image_suffixes(members)
    if out is None:
        out = np.empty((len(suffixes), SIDE, SIDE, 3), np.uint8)
    if len(out) > len(suffixes):
        raise ValueError(f"{len(suffixes)} images, expected {len(out)}")
    for frame, place in zip(out, evenly_spaced(len(suffixes), len(out)), strict=True):
        suffix = suffixes[place]
        try:
            _decode(members[suffix], frame)
        except (*BROKEN_IMAGE, MediaError, Image.DecompressionBombError) as error:
            raise ValueError(f"{suffix}: {error}") from error
    return out


def _decode(content: bytes, out: np.ndarray) -> None:
    if content.startswith(JPEG_START) and simplejpeg.decode_jpeg_header(content)[:2] == (SIDE, SIDE):
        simplejpeg.decode_jpeg(content, "RGB", buffer=out)
    else:
        out[:] = square_image(io.BytesIO(content))[0]


def check_image(suffix: str, content: bytes) -> None:
    """Refuse an image without a header or an end; damage between them shows only when the image is decoded.

    raises      MediaError empty, not_media, corrupt, too_large
    """
    if not content:
        raise MediaError("empty", f"{suffix}: 0 bytes")
    with image_errors(suffix):
        if content.startswith(JPEG_START):
            height, width, *_ = simplejpeg.decode_jpeg_header(content)
        else:
            with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
                width, height = image.size
    if width * height > MAX_PIXELS:
        raise MediaError("too_large", f"{suffix}: {width} x {height} pixels")
    scans = content.count(JPEG_SCAN) if content.startswith(JPEG_START) else 0
    if width * height * scans > MAX_SCANNED:
        raise MediaError("too_large", f"{suffix}: {width} x {height} pixels in {scans:,} scans")
    for start, end in ((JPEG_START, JPEG_END), (PNG_START, PNG_END)):
        if content.startswith(start) and end not in content[-TAIL:]:
            raise MediaError("corrupt", f"{suffix}: cut off after {len(content)} bytes")
