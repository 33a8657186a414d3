"""Perceptual hashes: copies of an image are found, other images are not, and the search finds all pairs."""

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fvlm.data.shards.perceptual import near_duplicates, perceptual_hash

SIDE = 224


def natural(seed: int) -> np.ndarray:
    """A random image (224, 224, 3) whose amplitudes fall as 1 / frequency, as those of photographs do."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    spectrum = np.fft.rfft2(rng.standard_normal((3, SIDE, SIDE))) / np.maximum(frequency, 1 / SIDE)
    waves = np.fft.irfft2(spectrum, (SIDE, SIDE))
    waves = 128 + 45 * (waves - waves.mean()) / waves.std()
    return np.ascontiguousarray(waves.transpose(1, 2, 0).clip(0, 255).astype(np.uint8))


IMAGES = [natural(seed) for seed in range(60)]


def jpeg(image: np.ndarray, quality: int = 90) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420")


def resized(image: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def webp(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", quality=70)
    return file.getvalue()


def bits(a: int, b: int) -> int:
    return (a ^ b).bit_count()


COPIES = {
    "quality 50": lambda image: jpeg(image, 50),
    "webp": webp,
    "smaller": lambda image: jpeg(resized(image, 160)),
    "larger": lambda image: jpeg(resized(image, 500)),
    "smaller and back": lambda image: jpeg(resized(resized(image, 112), SIDE), 70),
    "brighter": lambda image: jpeg((image.astype(int) + 12).clip(0, 255).astype(np.uint8)),
    "less contrast": lambda image: jpeg((image * 0.85).astype(np.uint8)),
    "with borders left and right": lambda image: jpeg(np.pad(image, ((0, 0), (40, 40), (0, 0)))),  # the centre is kept
}


@pytest.mark.parametrize("change", COPIES)
def test_a_copy_has_nearly_the_same_hash(change):
    apart = [bits(perceptual_hash(jpeg(image)), perceptual_hash(COPIES[change](image))) for image in IMAGES]
    assert np.mean(np.array(apart) <= 4) >= 0.95 and max(apart) <= 10


def test_other_images_have_other_hashes():
    hashes = [perceptual_hash(jpeg(image)) for image in IMAGES]
    apart = [bits(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > 11 and abs(np.mean(apart) - 31) < 2
    assert all(0 < one < 1 << 63 for one in hashes)


def test_an_image_without_structure_has_no_hash():
    rng = np.random.default_rng(0)
    noise = (rng.integers(-3, 4, (SIDE, SIDE, 3)) + 20).astype(np.uint8)
    for flat in (np.zeros((SIDE, SIDE, 3), np.uint8), np.full((SIDE, SIDE, 3), 255, np.uint8), noise):
        assert perceptual_hash(jpeg(flat)) == 0


def test_a_turned_photo_is_hashed_as_it_is_shown():
    image, file = IMAGES[0], io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6  # to be shown a quarter turn clockwise
    Image.fromarray(np.rot90(image)).save(file, "JPEG", quality=95, exif=exif)
    assert bits(perceptual_hash(file.getvalue()), perceptual_hash(jpeg(image))) <= 4


def test_a_damaged_frame_is_an_error():
    whole = jpeg(IMAGES[0])
    with pytest.raises(ValueError):
        perceptual_hash(whole[: len(whole) // 2])


def by_comparing_all(held_out: np.ndarray, training: np.ndarray, distance: int) -> set[tuple[int, int]]:
    """The definition of `near_duplicates`, one pair after the other."""

    def alike(a: list[int], b: list[int]) -> bool:
        if any((x == 0) != (y == 0) for x, y in zip(a, b, strict=True)):
            return False
        apart = [bits(x, y) for x, y in zip(a, b, strict=True) if x]
        return bool(apart) and max(apart) <= distance

    others = training.tolist()
    return {(i, j) for i, a in enumerate(held_out.tolist()) for j, b in enumerate(others) if alike(a, b)}


@given(seed=st.integers(0, 2**32), distance=st.integers(0, 11), sizes=st.tuples(st.integers(0, 30), st.integers(0, 80)))
@settings(max_examples=60, deadline=None)
def test_the_search_finds_what_comparing_all_finds(seed, distance, sizes):
    rng = np.random.default_rng(seed)
    centres = rng.integers(1, 1 << 63, 4, dtype=np.uint64)  # few, so that there are many pairs near the distance

    def drawn(n: int) -> np.ndarray:
        hashes = rng.choice(centres, (n, 2))
        for bit in rng.integers(0, 63, (8, n, 2)):
            flipped = hashes ^ (np.uint64(1) << bit.astype(np.uint64))
            hashes = np.where(rng.random((n, 2)) < 0.5, flipped, hashes)
        return np.where(rng.random((n, 2)) < 0.2, np.uint64(0), hashes)

    held_out, training = drawn(sizes[0]), drawn(sizes[1])
    found = near_duplicates(held_out, training, distance)
    assert found.shape == (len(found), 2) and found.dtype == np.int64
    assert [tuple(pair) for pair in found.tolist()] == sorted(by_comparing_all(held_out, training, distance))


def test_planted_pairs_among_many_are_found():
    rng = np.random.default_rng(1)
    training = rng.integers(1, 1 << 63, (200_000, 2), dtype=np.uint64)
    held_out = rng.integers(1, 1 << 63, (500, 2), dtype=np.uint64)
    rows = rng.choice(len(training), 100, replace=False)
    training[rows] = held_out[:100] ^ np.uint64(0b1111 << 30)
    held_out[100:110] = 0
    training[:1000] = 0
    planted = sorted((i, int(row)) for i, row in enumerate(rows) if row >= 1000)
    assert [tuple(pair) for pair in near_duplicates(held_out, training, 4).tolist()] == planted
    assert len(near_duplicates(held_out, training, 3)) == 0
