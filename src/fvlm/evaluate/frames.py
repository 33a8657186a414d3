"""Frames of a video or of images, as a finished run was shown its samples."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fvlm.data.decode.media import SIDE, Clip, Media
from fvlm.data.shards.samples import evenly_spaced


@dataclass(frozen=True)
class Frames:
    """Frames of one video or image.

    frames      (T, 224, 224, 3) uint8
    times_s     (T,) float64, seconds
    positions   visual positions; of an image more than one
    still       a single image
    """

    frames: np.ndarray
    times_s: np.ndarray
    positions: int
    still: bool = False


NO_FRAMES = Frames(np.zeros((0, SIDE, SIDE, 3), np.uint8), np.zeros(0), 0)


def load_frames(
    media: tuple[Media, ...], decode: Callable[[Media], Clip], max_frames: int, static_frames: int
) -> Frames:
    """Return the frames of a video, of an image, or of several images in order, one per second.

    max_frames      of more frames, so many are shown, evenly spaced
    static_frames   visual positions of a single image
    raises          MediaError if a file is missing or cannot be decoded
    """
    clips = [decode(one) for one in media]
    frames = np.concatenate([clip.frames for clip in clips])
    times_s = clips[0].times_s if len(clips) == 1 else np.arange(len(frames), dtype=float)
    shown = evenly_spaced(len(frames), max_frames)
    still = len(media) == 1 and media[0].image
    return Frames(frames[shown], times_s[shown], static_frames if still else len(shown), still)
