"""Attention over frames as one picture: a row of frames per video, lit where the query looks."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FRAMES = 8  # at most, in a row
SIDE = 160  # pixels of a frame in the picture
GAP, MARGIN, CAPTION, HEAD = 4, 12, 26, 44  # pixels
DIM = 0.25  # brightness left where nothing is attended
OUTLINED = 2.0  # times uniform attention; a dark thing stays dark when it is lit, but its outline shows
INK, OUTLINE = (70, 70, 70), (255, 210, 0)


@dataclass(frozen=True)
class Row:
    """One video: frames (T, H, W, 3) uint8, weights (T, side, side) that sum to 1 per frame, what stands below it."""

    frames: np.ndarray
    weights: np.ndarray
    caption: str


def overlay(rows: list[Row], title: str) -> Image.Image:
    """The picture of all rows, at most FRAMES evenly spaced frames each.

    A frame is dimmed where less is attended and outlined where more is than OUTLINED times uniform attention. All
    frames share one scale.
    """
    rows = [_thinned(row) for row in rows]
    # attention is peaked: with its very maximum at full brightness, little else would be seen
    top = max(OUTLINED, *(float(np.quantile(row.weights * row.weights[0].size, 0.98)) for row in rows))
    columns = max(4, *(len(row.frames) for row in rows))  # the title and the scale want room
    width = 2 * MARGIN + columns * (SIDE + GAP) - GAP
    page = Image.new("RGB", (width, HEAD + len(rows) * (SIDE + CAPTION) + MARGIN), "white")
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, HEAD / 2), title, "black", ImageFont.load_default(15), anchor="lm")
    _scale(page, draw, width - MARGIN, top)
    for number, row in enumerate(rows):
        y = HEAD + number * (SIDE + CAPTION)
        for column, (frame, weights) in enumerate(zip(row.frames, row.weights, strict=True)):
            page.paste(lit(frame, weights * weights.size, top), (MARGIN + column * (SIDE + GAP), y))
        draw.text((MARGIN, y + SIDE + 4), row.caption, INK, ImageFont.load_default(13))
    return page


def lit(frame: np.ndarray, looked: np.ndarray, top: float) -> Image.Image:
    """One frame in its own colours, (SIDE, SIDE).

    looked      (side, side) attention over uniform attention; `top` and above is full brightness
    """
    small = Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    smooth = Image.fromarray(looked.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    looked = np.asarray(smooth)
    pixels = np.asarray(small, float) * brightness(looked / top)[..., None]
    pixels[_border(looked > OUTLINED)] = OUTLINE
    return Image.fromarray(pixels.round().astype(np.uint8))


def brightness(level: np.ndarray) -> np.ndarray:
    return DIM + (1 - DIM) * np.clip(level, 0, 1)


def _border(inside: np.ndarray) -> np.ndarray:
    """Pixels (H, W) inside that have a neighbour outside."""
    core = np.pad(inside, 1, mode="edge")
    core = core[:-2, 1:-1] & core[2:, 1:-1] & core[1:-1, :-2] & core[1:-1, 2:]
    return inside & ~core


def _thinned(row: Row) -> Row:
    chosen = np.unique(np.linspace(0, len(row.frames) - 1, min(FRAMES, len(row.frames))).round().astype(int))
    return Row(row.frames[chosen], row.weights[chosen], row.caption)


def _scale(page: Image.Image, draw: ImageDraw.ImageDraw, right: int, top: float) -> None:
    """A thin bar from dim to bright in the upper right corner, with the outline's level marked in it."""
    length, thick = 130, 8
    shade = (255 * brightness(np.linspace(0, 1, length))).round().astype(np.uint8)
    left, y = right - length, 10
    page.paste(Image.fromarray(np.broadcast_to(shade, (thick, length))), (left, y))
    mark = left + round(min(OUTLINED / top, 1) * (length - 1))
    draw.line((mark, y - 2, mark, y + thick + 1), OUTLINE, 2)
    draw.text(
        (right, y + thick + 3),
        f"dark 0,  outline {OUTLINED:g},  bright {top:.1f} x uniform",
        INK,
        ImageFont.load_default(11),
        anchor="ra",
    )
