"""Perceptual hashes of images, and a search for held-out samples that look like training samples.

The hash is the DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), with
the median as threshold (Coskun and Sankur, 2004): re-encoding, scaling and small changes of brightness flip few bits.
The search is the exact one of Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing"
(2012).
"""

import io
from functools import cache
from itertools import combinations

import numpy as np
import simplejpeg

from fvlm.data.decode.media import MAX_PIXELS, SIDE, MediaError
from fvlm.data.decode.video import square_image

SMALL, LOW = 32, 8  # pixels of the reduced image's side; DCT frequencies kept each way
FLAT = 4.0  # grey levels; an image with a smaller standard deviation has no structure but noise
BANDS, BAND_BITS = 3, 21  # the 63 bits of a hash, in three words
CHUNK = 1 << 21  # candidate pairs compared at a time: about 100 MB
LUMA = np.array([0.299, 0.587, 0.114])  # weights of RGB as in JPEG (ITU-R BT.601)


def perceptual_hash(image: bytes) -> int:
    """Return 63 bits that are similar for images that look alike; 0 for a flat image, whose hash would be noise.

    The central square in grey is averaged to 32 x 32. Each bit compares one of the 8 x 8 lowest DCT frequencies (not
    the mean) with their median.

    image       encoded; a JPEG is decoded at a small size, which is fast
    raises      ValueError for a JPEG that cannot be decoded; exceptions of Pillow and MediaError for another image
    """
    grey = _grey(image)
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
    # A JPEG with EXIF may be turned, which only Pillow handles; EXIF is near the start of the file.
    if content.startswith(b"\xff\xd8") and b"Exif\0" not in content[:4096]:
        # strict as in training, where simplejpeg decodes frames of the right size and Pillow all others
        height, width = simplejpeg.decode_jpeg_header(content)[:2]
        if height * width > MAX_PIXELS:
            raise MediaError("too_large", f"{width} x {height} pixels")
        strict = (height, width) == (SIDE, SIDE)
        return simplejpeg.decode_jpeg(content, "GRAY", min_height=SMALL, min_width=SMALL, strict=strict)[..., 0]
    return square_image(io.BytesIO(content))[0] @ LUMA


@cache
def _cosines() -> np.ndarray:
    """The lowest rows of the orthonormal DCT-II, (8, 32)."""
    frequency, place = np.arange(LOW)[:, None], np.arange(SMALL)[None]
    rows = np.cos(np.pi * (place + 0.5) * frequency / SMALL) * np.sqrt(2 / SMALL)
    rows[0] /= np.sqrt(2)
    return rows


@cache
def _averages(side: int) -> np.ndarray:
    """Weights that average `side` pixels, or parts of pixels, to 32 values: (32, side)."""
    edges = np.linspace(0, side, SMALL + 1)
    pixels = np.arange(side)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.clip(covered, 0, None) * (SMALL / side)


def near_duplicates(held_out: np.ndarray, training: np.ndarray, distance: int) -> np.ndarray:
    """Find the pairs of samples whose first images look alike, and whose middle images do too.

    Two images look alike if their hashes differ in at most `distance` bits. Two flat images match, so the other images
    of the samples decide; a flat image never matches one with structure. Samples with only flat images, or none, are in
    no pair.

    held_out    (n, 2) uint64, hashes of the first and the middle image; 0: none or flat
    training    (m, 2) uint64
    distance    at most 11 bits
    returns     (k, 2) int64, rows of `held_out` and of `training`, sorted; every such pair is found
    """
    pairs = [np.zeros((0, 2), np.int64)]
    for column in (0, 1):
        # Search by the first image; by the middle one only if the first images are flat.
        rows, others = (
            np.flatnonzero((hashes[:, column] != 0) & ((column == 0) | (hashes[:, 0] == 0)))
            for hashes in (held_out, training)
        )
        for i, j in _candidates(held_out[rows, column], training[others, column], distance):
            i, j = rows[i], others[j]
            a, b = held_out[i], training[j]
            alike = ((np.bitwise_count(a ^ b) <= distance) & ((a == 0) == (b == 0))).all(1)
            pairs.append(np.stack([i[alike], j[alike]], axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def _candidates(a: np.ndarray, b: np.ndarray, distance: int):
    """Positions in `a` and `b` of all pairs that may differ in at most `distance` bits; some pairs come twice.

    One of the three words of such a pair differs in at most a third of the bits. So the words of `b` are sorted, and
    each word of `a`, with all such changes, is looked up among them.
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
            piece = np.cumsum(count) // CHUNK
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
