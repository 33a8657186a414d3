"""From a file to 224 x 224 frames: videos at 1 FPS by presentation time, images as one frame."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fvlm.data import fallback, pyav
from fvlm.data.media import MAX_PIXELS, Clip, MediaError, centre, check_regular, fit
from fvlm.errors import UserError

BACKENDS = ("pyav", "decord", "ffmpeg")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# Formats of Pillow that hold pixels and nothing to execute (EPS would start Ghostscript).
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def decode_video(path: Path | str, backend: str = "pyav", crop: bool = True) -> Clip:
    """Frames shown at t = 0, 1, 2, ... seconds; of a video longer than 64 s, 64 evenly spaced ones.

    backend     which decoder is asked first; the others are asked where it gives no frame
    crop        True: short side to 224, then the centre; False: both sides squashed to 224
    raises      MediaError with one of `media.REASONS`; UserError for an unknown backend
    """
    if backend not in BACKENDS:
        raise UserError(f"decoder {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    path = Path(path)
    check_regular(path)
    problems = []
    for name in (backend, *(other for other in BACKENDS if other != backend)):
        try:
            if name == "pyav":
                return pyav.decode(path, crop)
            # Opened first: PyAV refuses a playlist that is named .mp4, the others would follow it.
            container, stream = pyav.open_video(path)
            codec, number = stream.codec_context.name, stream.index
            container.close()
            decode = fallback.decode_with_decord if name == "decord" else fallback.decode_with_ffmpeg
            return decode(path, codec, number, crop)
        except MediaError as error:
            if error.reason != "corrupt":
                raise
            problems.append(str(error))
        except MemoryError as error:
            raise MediaError("too_large", f"{path}: out of memory") from error
    raise MediaError("corrupt", "; ".join(problems))


def decode_image(path: Path | str, crop: bool = True) -> Clip:
    """An image as a clip of one frame at time 0.

    raises      MediaError
    """
    path = Path(path)
    check_regular(path)
    try:
        frame, codec = square_image(path, crop)
    except UnidentifiedImageError as error:
        raise MediaError("not_media", f"{path}: no image format that is read here") from error
    except Image.DecompressionBombError as error:
        raise MediaError("too_large", f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: Pillow's word for a broken PNG chunk
        raise MediaError("corrupt", f"{path}: {error}") from error
    return Clip(frame[None], np.zeros(1), 0.0, codec)


def square_image(file: Path | BinaryIO, crop: bool = True) -> tuple[np.ndarray, str]:
    """An image as (224, 224, 3) uint8, upright as its EXIF says, transparency over white; and its format.

    raises      MediaError too_large, and what Pillow raises
    """
    with Image.open(file, formats=IMAGE_FORMATS) as image:
        codec = image.format.lower()
        if image.width * image.height > MAX_PIXELS:
            raise MediaError("too_large", f"{file}: {image.width} x {image.height} pixels")
        image.load()
        pixels = ImageOps.exif_transpose(image)
    if pixels.mode in ("RGBA", "LA", "PA") or "transparency" in pixels.info:
        pixels = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels.convert("RGBA"))
    pixels = pixels.convert("RGB").resize(fit(*pixels.size, crop), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(centre(np.asarray(pixels))), codec
