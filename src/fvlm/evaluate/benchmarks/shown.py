"""Frames of a question, as a finished run was shown its samples."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fvlm.data.decode.media import SIDE, Media
from fvlm.data.decode.pool import decode
from fvlm.data.shards.samples import evenly_spaced


@dataclass(frozen=True, eq=False)
class Shown:
    """Frames of one video or image.

    frames      (T, 224, 224, 3) uint8
    times_s     T times in seconds
    positions   visual positions; of an image more than one
    still       a single image
    order       positions as places in 0 ... positions - 1, shuffled; None: in order
    """

    frames: np.ndarray
    times_s: tuple[float, ...]
    positions: int
    still: bool = False
    order: tuple[int, ...] | None = None

    def shuffled(self, seed: int) -> "Shown | None":
        """Return the same frames in another order, or None if there is only one frame."""
        if len(self.frames) < 2:
            return None
        order = np.random.default_rng(seed).permutation(self.positions)
        if (order == np.arange(self.positions)).all():
            order = order[::-1]
        return replace(self, order=tuple(order.tolist()))


NOTHING = Shown(np.zeros((0, SIDE, SIDE, 3), np.uint8), (), 0)


def load(media: tuple[Media, ...], folder: Path, crop: bool, max_frames: int, static_frames: int) -> Shown:
    """Decode the media of a question.

    crop            the centre of each frame; False: the whole frame squashed to a square
    max_frames      of more frames, so many are shown, evenly spaced
    static_frames   positions of a single image
    raises          MediaError if a file is missing or cannot be decoded
    """
    if len(media) == 1 and not media[0].image:
        clip = decode(media[0], folder, crop=crop)
        frames, times_s = clip.frames, clip.times_s
    else:
        frames = np.concatenate([decode(image, folder, crop=crop).frames for image in media])
        times_s = np.arange(len(frames), dtype=float)
    kept = evenly_spaced(len(frames), max_frames)
    still = len(media) == 1 and media[0].image
    return Shown(frames[kept], tuple(times_s[kept].tolist()), static_frames if still else len(kept), still)
