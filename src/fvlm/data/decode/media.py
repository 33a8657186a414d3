"""What all decoders share: the clip, the 1 FPS schedule, limits, and the reasons for which a file is rejected."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIDE = 224  # pixels; side of a frame
LONGEST = 16 * SIDE  # pixels; a picture that would be scaled to a longer side is cropped first
MAX_FRAMES = 64
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif")
Span = tuple[float, float] | None  # part of a video: start and end in seconds; None: all of it
MAX_PIXELS = 100_000_000  # of one decoded picture: about 300 MB as RGB
MAX_SCANNED = 100 * MAX_PIXELS  # pixels times scans of a progressive JPEG; a scan of 30 bytes may cover all pixels
MAX_IMAGE_BYTES = 512 << 20  # of one encoded picture; more than MAX_PIXELS without compression
MAX_SAMPLE_BYTES = 1 << 30  # of a sample in a shard, which is read at once
MAX_TEXT_BYTES = 64 << 20  # of a line of a table, or of the text of a sample in a shard

# All reasons for which an input may be rejected.
REASONS = {
    "missing": "the file does not exist, is not a regular file, or cannot be read",
    "empty": "the file has no bytes",
    "not_media": "the content is not a supported video or image format",
    "no_video_stream": "the file has sound, subtitles or a cover, but no video",
    "corrupt": "the format was recognised, but no frame could be decoded",
    "too_large": "one picture has more pixels, or needs more memory or time, than is allowed",
    "empty_span": "the requested part has no frame: it starts after the end, or ends where it starts",
    "timeout": "decoding took longer than the deadline for one file",
    "crashed": "the decoder's process ended",
    "bad_row": "the row of the table lacks a text that it needs",
    "bad_sample": "the sample of a shard lacks text or images, has too many, or they contradict each other",
}


class MediaError(Exception):
    """A file without usable frames. `reason` is a key of `REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        assert reason in REASONS, reason
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Media:
    """One video or image of a sample, and the place of its bytes.

    file        name in the ledger: relative to the source's folder, or absolute
    image       False: a video
    content     the bytes, if a table holds them
    inside      an uncompressed tar that holds the bytes at [offset, offset + size); relative or absolute like `file`
    span_s      part of the video, (start, end) in seconds after its first shown frame; None: all of it
    """

    file: str
    image: bool = False
    content: bytes | None = None
    inside: str | None = None
    offset: int = 0
    size: int = 0
    span_s: Span = None


@dataclass(frozen=True)
class Clip:
    """The frames of one video, or of one image (one frame at time 0, duration 0).

    frames      (T, 224, 224, 3) uint8 RGB, 1 <= T <= 64
    times_s     (T,) float64, seconds after the first shown frame; frame i is shown at that time
    duration_s  from the first shown frame to the end of the last
    codec       FFmpeg's name; for an image its format in lower case
    """

    frames: np.ndarray
    times_s: np.ndarray
    duration_s: float
    codec: str

    def __post_init__(self) -> None:
        expected = (len(self.times_s), SIDE, SIDE, 3)
        if self.frames.shape != expected or self.frames.dtype != np.uint8:
            raise ValueError(f"frames: {self.frames.shape} {self.frames.dtype}, expected {expected} uint8")


def schedule(shown_s: np.ndarray, duration_s: float, span_s: Span = None) -> tuple[np.ndarray, np.ndarray, float]:
    """Choose the frames shown at t = 0, 1, 2, ... < duration; of more than 64 s, 64 frames at t = i duration / 64.

    shown_s     (F,) seconds at which each frame appears, ascending, the first one 0
    span_s      only this part; times and duration count from its start
    returns     times (T,) float64; for each, the position (T,) int64 of the last frame that is not later; duration
    raises      MediaError empty_span
    """
    slack = 1e-6  # for rounding errors of times
    start_s = 0.0
    if span_s is not None:
        start_s, end_s = max(0.0, span_s[0]), min(span_s[1], duration_s)
        if not (span_s[0] < span_s[1] and start_s < end_s):
            span = f"{span_s[0]:g} s to {span_s[1]:g} s"
            raise MediaError("empty_span", f"no frame from {span}: the video lasts {duration_s:g} s")
        duration_s = end_s - start_s
    if duration_s <= MAX_FRAMES + slack:
        times_s = np.arange(max(1, int(np.ceil(duration_s - slack))), dtype=np.float64)
    else:
        times_s = np.arange(MAX_FRAMES) * (duration_s / MAX_FRAMES)
    return times_s, np.searchsorted(shown_s, start_s + times_s + slack, side="right") - 1, duration_s


def check_regular(path: Path) -> None:
    """Refuse anything but a regular file with content; reading a FIFO would block for ever.

    raises      MediaError missing, empty
    """
    try:
        status = os.stat(path)
        regular = stat.S_ISREG(status.st_mode)
        if regular:
            path.open("rb").close()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise MediaError("missing", f"{path}: {getattr(error, 'strerror', error)}") from error
    if not regular:
        raise MediaError("missing", f"{path}: not a regular file")
    if status.st_size == 0:
        raise MediaError("empty", f"{path}: 0 bytes")


def fit(width: float, height: float, crop: bool) -> tuple[int, int]:
    """Width and height before the centre crop: the short side becomes 224 (crop), or both sides do (squash).

    width, height   as the picture is shown: of pixels that are not square, the stored width times their aspect ratio
    """
    if not crop:
        return SIDE, SIDE
    short = min(width, height)
    return round(width * SIDE / short), round(height * SIDE / short)


def centre(image: np.ndarray) -> np.ndarray:
    """The central 224 x 224 pixels of an image that is at least this large."""
    top, left = (image.shape[0] - SIDE) // 2, (image.shape[1] - SIDE) // 2
    return image[top : top + SIDE, left : left + SIDE]
