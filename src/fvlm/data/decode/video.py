"""From a file to 224 x 224 frames: videos at 1 FPS by presentation time, images as one frame."""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fvlm.data.decode import fallback, pyav
from fvlm.data.decode.media import LONGEST, MAX_PIXELS, Clip, MediaError, Span, centre, check_regular, fit
from fvlm.errors import UserError

DECODERS = {
    "pyav": pyav.decode,
    "decord": fallback.decode_with_decord,
    "ffmpeg": fallback.decode_with_ffmpeg,
}
BACKENDS = tuple(DECODERS)
# Formats of Pillow that hold pixels and nothing to execute (EPS would start Ghostscript).
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
HEIC = (b"heic", b"heix", b"heim", b"heis")  # brands of a format that Pillow cannot read
# Exceptions of Pillow for a broken image: SyntaxError for a PNG chunk, TypeError and struct.error for EXIF, ...
BROKEN_IMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, OSError, SyntaxError, TypeError, ValueError),
    struct.error,
)


def decode_video(path: Path | str, backend: str = "pyav", crop: bool = True, span_s: Span = None) -> Clip:
    """Return the frames shown at t = 0, 1, 2, ... seconds; of a video longer than 64 s, 64 evenly spaced ones.

    backend     the decoder that is tried first; if it returns no frame, the others are tried
    crop        True: scale the short side to 224, then crop the centre; False: squash both sides to 224
    span_s      only this part, (start, end) in seconds after the first shown frame; the clip's times start at 0
    raises      MediaError with one of `media.REASONS`; UserError for an unknown backend
    """
    if backend not in BACKENDS:
        raise UserError(f"decoder {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    path = Path(path)
    check_regular(path)
    problems = []
    for name in (backend, *(other for other in BACKENDS if other != backend)):
        try:
            return DECODERS[name](path, crop, span_s)
        except MediaError as error:
            if error.reason != "corrupt":
                raise
            problems.append(str(error))
        except MemoryError as error:
            raise MediaError("too_large", f"{path}: out of memory") from error
    raise MediaError("corrupt", "; ".join(problems))


def decode_image(file: Path | str | BinaryIO, crop: bool = True, name: str = "") -> Clip:
    """Return an image as a clip of one frame at time 0.

    name        name in messages for an image that is no file
    raises      MediaError
    """
    if isinstance(file, str | Path):
        file = Path(file)
        check_regular(file)
    with image_errors(name or str(file)):
        frame, codec = square_image(file, crop)
    return Clip(frame[None], np.zeros(1), 0.0, codec)


@contextlib.contextmanager
def image_errors(name: str) -> Iterator[None]:
    """Turn the exceptions of a broken image into a MediaError whose message begins with its name."""
    try:
        yield
    except MediaError as error:
        raise MediaError(error.reason, f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise MediaError("not_media", f"{name}: not a supported image format") from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise MediaError("too_large", f"{name}: {error or 'out of memory'}") from error
    except BROKEN_IMAGE as error:
        raise MediaError("corrupt", f"{name}: {error}") from error


def square_image(file: Path | BinaryIO, crop: bool = True) -> tuple[np.ndarray, str]:
    """Return an image as (224, 224, 3) uint8, turned upright by its EXIF, transparency over white; and its format.

    raises      MediaError too_large, not_media (32-bit pixels), and the exceptions of Pillow
    """
    with open(file, "rb") if isinstance(file, Path) else contextlib.nullcontext(file) as opened:
        if opened.read(12)[8:] in HEIC:
            raise MediaError("not_media", "a HEIC picture, which cannot be read; convert it to JPEG, PNG or AVIF")
        opened.seek(0)
        return _square_image(opened, crop)


def _square_image(file: BinaryIO, crop: bool) -> tuple[np.ndarray, str]:
    with Image.open(file, formats=IMAGE_FORMATS) as image:
        codec = image.format.lower()
        if image.width * image.height > MAX_PIXELS:
            raise MediaError("too_large", f"{image.width} x {image.height} pixels")
        image.load()
        pixels = ImageOps.exif_transpose(image)
    # Pillow's conversion to RGB clips 16-bit values at 255, so nearly all pixels would be white.
    if pixels.mode.startswith("I;16"):
        pixels = Image.fromarray((np.asarray(pixels) >> 8).astype(np.uint8))
    elif pixels.mode in ("I", "F"):
        raise MediaError("not_media", "32-bit pixels, whose range is unknown; store them with 8 or 16 bits")
    if crop and max(fit(*pixels.size, crop)) > LONGEST:
        short = min(pixels.size)
        left, top = (pixels.width - short) // 2, (pixels.height - short) // 2
        pixels = pixels.crop((left, top, left + short, top + short))
    if pixels.mode in ("RGBA", "LA", "PA") or "transparency" in pixels.info:
        pixels = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels.convert("RGBA"))
    pixels = pixels.convert("RGB").resize(fit(*pixels.size, crop), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(centre(np.asarray(pixels))), codec
