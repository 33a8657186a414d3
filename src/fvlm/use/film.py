"""The film of `fvlm look --video`: each frame as each run's queries see it, side by side, one per second."""

from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fvlm.files import write_beside
from fvlm.use.page import PASSES, PageVideo, map_scale

SIDE = 448  # pixels of a frame in the film
HEAD = 32  # pixels of the text above it
RATE = 4  # pictures per second of the file, of which each frame fills all: players handle one per second badly


def write_film(path: Path, video: PageVideo) -> None:
    """Write an MP4. Runs without attention show the frames as they are."""
    columns = [column for sample, looked in video.runs for column in _columns(sample, looked)]
    count = max(len(frames) for _, frames in columns)

    def write(part: Path) -> None:
        with av.open(str(part), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=RATE, options={"crf": "20"})
            stream.width, stream.height, stream.pix_fmt = SIDE * len(columns), SIDE + HEAD, "yuv420p"
            for number in range(count):
                shown = [_titled(title, frames[number * len(frames) // count]) for title, frames in columns]
                picture = av.VideoFrame.from_ndarray(np.concatenate(shown, axis=1), format="rgb24")
                for _ in range(RATE):
                    container.mux(stream.encode(picture))
            container.mux(stream.encode(None))

    write_beside(path, write)


def _columns(sample, looked) -> list[tuple[str, list[np.ndarray]]]:
    """Return (title, frames (SIDE, SIDE, 3) uint8) of each pass of a run."""
    positions = looked.shown if len(looked.shown) else np.arange(len(sample.frames))
    frames = [np.asarray(Image.fromarray(sample.frames[i]).resize((SIDE, SIDE))) for i in positions]
    passes = [name for name in PASSES if name in looked.passes]
    if not passes:
        return [(looked.run.name, frames)]
    columns, scale = [], map_scale(looked)
    for name in passes:
        pairs = zip(frames, looked.passes[name][0], strict=True)
        columns.append((f"{looked.run.name}, {name}", [_dimmed(frame, patches, scale) for frame, patches in pairs]))
    return columns


def _dimmed(frame: np.ndarray, patches: np.ndarray, scale: float) -> np.ndarray:
    """Return a frame that is dark where a query has no more than uniform attention, as on the page."""
    side = round(len(patches) ** 0.5)
    above = ((patches * len(patches) - 1) / (scale - 1)).clip(0, 1) ** 0.5
    small = Image.fromarray((255 * (0.2 + 0.8 * above)).astype(np.uint8).reshape(side, side))
    light = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return (frame * (light[:, :, None] / 255)).astype(np.uint8)


def _titled(title: str, frame: np.ndarray) -> np.ndarray:
    head = Image.new("RGB", (SIDE, HEAD), "black")
    ImageDraw.Draw(head).text((8, 6), title, "white", ImageFont.load_default(18))
    return np.concatenate([np.asarray(head), frame])
