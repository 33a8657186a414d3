"""Perceptual hashes of images, and a search for held-out samples that training samples nearly repeat.

The hash is the DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), with
the median as threshold (Coskun and Sankur, 2004): re-encoding, scaling and small changes of brightness flip few bits
of it. Hashes are searched as in Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing"
(2012), which is exact.
"""

import io
from functools import cache
from itertools import combinations

import numpy as np
import simplejpeg

from fvlm.data.decode.media import MAX_PIXELS, SIDE, MediaError
from fvlm.data.decode.video import square_image

SMALL, LOW = 32, 8  # pixels of the reduced image's side; DCT frequencies kept each way
FLAT = 4.0  # grey levels: an image that varies less (standard deviation) has no structure but noise
BANDS, BAND_BITS = 3, 21  # the 63 bits of a hash, in three words
CHUNK = 1 << 21  # candidate pairs compared at a time: about 100 MB
LUMA = np.array([0.299, 0.587, 0.114])  # of RGB, as JPEG has it (ITU-R BT.601)


def perceptual_hash(image: bytes | np.ndarray) -> int:
    """63 bits that tell images apart as the eye does, of the central square; 0 for an image without structure.

    Grey, averaged to 32 x 32, the 8 x 8 lowest DCT frequencies without the mean, each one compared with their median.
    Flat images (black, white, fades) get 0: their hash would be noise.

    image       encoded (JPEG is decoded small, which is fast), or (H, W) or (H, W, 3) uint8
    raises      ValueError for a JPEG that cannot be decoded, what Pillow raises and MediaError for another image
    """
    grey = _grey(image) if isinstance(image, bytes) else image
    if grey.ndim == 3:
        grey = grey @ LUMA
    height, width = grey.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    reduce = _averages(side)
    small = reduce @ grey[top : top + side, left : left + side] @ reduce.T
    if small.std() < FLAT:
        return 0
    cosines = _cosines()
    low = (cosines @ small @ cosines.T).ravel()[1:]
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(np.concatenate([[False], bits])).tobytes(), "big")


def _grey(content: bytes) -> np.ndarray:
    # A turned photo goes the way on which its EXIF is read; the mark stands near the start where there is one.
    if content.startswith(b"\xff\xd8") and b"Exif\0" not in content[:4096]:
        # As in training, a frame of the right size must be whole; other JPEGs are read there by Pillow.
        height, width = simplejpeg.decode_jpeg_header(content)[:2]
        if height * width > MAX_PIXELS:
            raise MediaError("too_large", f"{width} x {height} pixels")
        strict = (height, width) == (SIDE, SIDE)
        return simplejpeg.decode_jpeg(content, "GRAY", min_height=SMALL, min_width=SMALL, strict=strict)[..., 0]
    return square_image(io.BytesIO(content))[0]


@cache
def _cosines() -> np.ndarray:
    """(8, 32): the lowest rows of the orthonormal DCT-II."""
    frequency, place = np.arange(LOW)[:, None], np.arange(SMALL)[None]
    rows = np.cos(np.pi * (place + 0.5) * frequency / SMALL) * np.sqrt(2 / SMALL)
    rows[0] /= np.sqrt(2)
    return rows


@cache
def _averages(side: int) -> np.ndarray:
    """(32, side): each row averages the pixels, or parts of pixels, under one of 32 equal stretches."""
    edges = np.linspace(0, side, SMALL + 1)
    pixels = np.arange(side)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.clip(covered, 0, None) * (SMALL / side)


def near_duplicates(held_out: np.ndarray, training: np.ndarray, distance: int) -> np.ndarray:
    """Pairs of samples that show nearly the same: their first images and their middle ones both look alike.

    Two images look alike if their hashes differ in at most `distance` bits. A flat image says nothing: where the first
    images of both samples are flat, the middle ones decide alone, and the other way round; a flat image and one with
    structure differ. Samples without any structure (text, blank videos) are in no pair.

    held_out    (n, 2) uint64, hashes of the first and the middle image, 0: none or flat
    training    (m, 2) uint64
    distance    at most 11 bits
    returns     (k, 2) int64, rows of `held_out` and of `training`, sorted; every such pair is found
    """
    if not 0 <= distance < 4 * BANDS:
        raise ValueError(f"distance {distance}: expected 0 to {4 * BANDS - 1}")
    found = [np.zeros((0, 2), np.int64)]
    for column in (0, 1):
        # The first image finds the pairs; the middle one only those whose first images are flat.
        mine = np.flatnonzero((held_out[:, column] != 0) & ((column == 0) | (held_out[:, 0] == 0)))
        theirs = np.flatnonzero((training[:, column] != 0) & ((column == 0) | (training[:, 0] == 0)))
        for i, j in _candidates(held_out[mine, column], training[theirs, column], distance):
            i, j = mine[i], theirs[j]
            alike = np.ones(len(i), bool)
            for each in (0, 1):
                a, b = held_out[i, each], training[j, each]
                alike &= (np.bitwise_count(a ^ b) <= distance) & ((a == 0) == (b == 0))
            found.append(np.stack([i[alike], j[alike]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _candidates(a: np.ndarray, b: np.ndarray, distance: int):
    """Positions in `a` and `b` of all pairs that may differ in at most `distance` bits, some of them twice.

    If they do, one of their three words differs in at most a third of that: the words of `b` are sorted, and those of
    `a` are looked up there with every such change.
    """
    flips = _words_near_zero(distance // BANDS)
    rows = max(1, CHUNK // len(flips))
    for band in range(BANDS):
        words_a, words_b = (_word(hashes, band) for hashes in (a, b))
        by_word = np.argsort(words_b, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(words_b, minlength=1 << BAND_BITS))])
        for low in range(0, len(a), rows):
            probes = (words_a[low : low + rows, None] ^ flips).ravel()
            first, count = starts[probes], starts[probes + 1] - starts[probes]
            hit = np.flatnonzero(count)
            first, count, row = first[hit], count[hit], low + hit // len(flips)
            piece = np.cumsum(count) // CHUNK  # as many as fit at a time, at least one word's
            for part in np.split(np.arange(len(hit)), np.flatnonzero(np.diff(piece)) + 1):
                before = np.cumsum(count[part]) - count[part]
                within = np.arange(count[part].sum()) - np.repeat(before, count[part])
                yield np.repeat(row[part], count[part]), by_word[np.repeat(first[part], count[part]) + within]


def _word(hashes: np.ndarray, band: int) -> np.ndarray:
    return ((hashes >> np.uint64(band * BAND_BITS)) & np.uint64((1 << BAND_BITS) - 1)).astype(np.int32)


def _words_near_zero(most: int) -> np.ndarray:
    """All words of 21 bits with at most `most` bits set."""
    words = [sum(1 << bit for bit in bits) for n in range(most + 1) for bits in combinations(range(BAND_BITS), n)]
    return np.array(words, np.int32)
