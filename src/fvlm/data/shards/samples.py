"""What a sample of a shard says and shows: its text in every form that shards have, and its images."""

import io
import json
import re
from collections.abc import Iterable

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from fvlm.data.decode.media import MAX_PIXELS, MAX_SCANNED, SIDE, MediaError
from fvlm.data.decode.video import BROKEN_IMAGE, IMAGE_FORMATS, square_image

# `jpg`, `0.jpg`, `000.jpg`, `frame_0001.jpg`, `image0.png`: what stands after the sample's key.
IMAGE = re.compile(r"(?:(?:frame|image|img)?[_-]?(\d+)\.)?(?:jpg|jpeg|png|webp)", re.IGNORECASE)
VIDEO = re.compile(r"(?:.*\.)?(?:mp4|webm|mkv|mov|avi)", re.IGNORECASE)
JPEG_SCAN = b"\xff\xda"  # within a scan's data no byte 255 stands before this one
JPEG_START, JPEG_END, PNG_START, PNG_END = b"\xff\xd8", b"\xff\xd9", b"\x89PNG", b"IEND"
TAIL = 1024  # bytes in which an image's end mark is looked for: some cameras write a little after it


def sample_text(members: dict[str, bytes], prompt: str) -> dict:
    """What is said in a sample, in a form that `encode_chat` takes, and `file` where it is known.

    prompt      what the user asks where there is only a caption
    raises      ValueError if there is no text, or it is no JSON object in UTF-8
    """
    described = json.loads(members["json"]) if "json" in members else {}
    if not isinstance(described, dict):
        raise ValueError("json is no object")
    if described.get("token_ids") or described.get("messages") or described.get("assistant"):
        return described
    if described.get("chosen"):
        return {**described, "assistant": described["chosen"]}
    caption = described.get("caption") or members.get("txt", b"").decode("utf-8").strip()
    if not caption:
        raise ValueError("neither messages, assistant, token_ids nor a caption")
    return {**described, "user": prompt, "assistant": caption}


def rejected_text(text: dict) -> dict | None:
    """The worse half of a preference pair, of which `sample_text` gives the better one; None where there is none."""
    answer = text.get("rejected")
    if not isinstance(answer, str) or not answer or "token_ids" in text or text.get("messages"):
        return None
    return {**text, "assistant": answer}


def image_suffixes(members: Iterable[str]) -> list[str]:
    """The images among a sample's members by their numbers: 2.jpg stands before 10.jpg."""
    numbered = [(int(match[1] or 0), match[0]) for match in map(IMAGE.fullmatch, members) if match]
    return [suffix for _, suffix in sorted(numbered)]


def video_suffixes(members: Iterable[str]) -> list[str]:
    """The videos among a sample's members, which shards in the trained form do not have."""
    return sorted(filter(VIDEO.fullmatch, members))


def decode_frames(members: dict[str, bytes], out: np.ndarray | None = None) -> np.ndarray:
    """Images of a sample in the order of their numbers, (T, 224, 224, 3) uint8; T = 0 for text.

    out         where to put them, of that shape: saves copying them into a batch
    raises      ValueError naming the image that cannot be decoded, or if `out` is for another number of images
    """
    suffixes = image_suffixes(members)
    if out is None:
        out = np.empty((len(suffixes), SIDE, SIDE, 3), np.uint8)
    if len(out) != len(suffixes):
        raise ValueError(f"{len(suffixes)} images, expected {len(out)}")
    for frame, suffix in zip(out, suffixes, strict=True):
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
    """Refuse an image whose header or end is missing; damage between them shows only when it is decoded.

    raises      MediaError empty, not_media, corrupt, too_large
    """
    if not content:
        raise MediaError("empty", f"{suffix}: 0 bytes")
    try:
        if content.startswith(JPEG_START):
            height, width, *_ = simplejpeg.decode_jpeg_header(content)
        else:
            with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
                width, height = image.size
    except (Image.DecompressionBombError, MemoryError) as error:
        raise MediaError("too_large", f"{suffix}: {error or 'out of memory'}") from error
    except UnidentifiedImageError as error:
        raise MediaError("not_media", f"{suffix}: no image format that is read here") from error
    except BROKEN_IMAGE as error:
        raise MediaError("corrupt", f"{suffix}: {error}") from error
    if width * height > MAX_PIXELS:
        raise MediaError("too_large", f"{suffix}: {width} x {height} pixels")
    scans = content.count(JPEG_SCAN) if content.startswith(JPEG_START) else 0
    if width * height * scans > MAX_SCANNED:
        raise MediaError("too_large", f"{suffix}: {width} x {height} pixels in {scans:,} scans")
    for start, end in ((JPEG_START, JPEG_END), (PNG_START, PNG_END)):
        if content.startswith(start) and end not in content[-TAIL:]:
            raise MediaError("corrupt", f"{suffix}: cut before its end, at {len(content)} bytes")
