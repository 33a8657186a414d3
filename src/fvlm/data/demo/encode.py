"""Write the videos of the demo corpus with ffmpeg: many codecs, containers, sizes and rates; always the same bytes."""

from dataclasses import dataclass
from pathlib import Path

import ffmpeg
import imageio_ffmpeg
import numpy as np

from fvlm.data.demo.scenes import TICKS_PER_S
from fvlm.errors import UserError

SIZES = (
    (256, 224), (240, 240), (320, 240), (224, 288), (180, 320), (320, 180), (227, 241), (426, 240),
    (270, 480),
)  # fmt: skip
RATES = (*("24000/1001", "24", "25", "30000/1001", "30") * 3, "50", "60")

# name: (share of the clips, containers, encoder options); one thread and no build information, to be reproducible
CODECS = {
    "h264": (0.46, ("mp4", "mov", "mkv"), {"vcodec": "libx264", "preset": "ultrafast", "crf": 23}),
    "h264_b": (0.24, ("mp4", "mkv"), {
        "vcodec": "libx264", "preset": "ultrafast", "crf": 23, "bf": 2, "g": 48,
    }),
    "mpeg4": (0.14, ("mp4", "avi"), {"vcodec": "mpeg4", "qscale": 4, "g": 30}),
    "vp9": (0.05, ("webm", "mkv"), {
        "vcodec": "libvpx-vp9", "deadline": "realtime", "cpu-used": 8, "crf": 34, "b:v": 0,
    }),
    "mjpeg": (0.05, ("mkv", "avi"), {"vcodec": "mjpeg", "qscale": 5}),
    "hevc": (0.05, ("mp4", "mkv"), {
        "vcodec": "libx265", "preset": "ultrafast", "crf": 26,
        "x265-params": "pools=none:frame-threads=1:bframes=2:log-level=error:info=0",
    }),
    "av1": (0.01, ("mp4", "webm"), {
        "vcodec": "libsvtav1", "preset": 13, "crf": 40, "svtav1-params": "lp=1",
    }),
}  # fmt: skip
EXACT = {"threads": 1, "fflags": "+bitexact", "flags": "+bitexact"}  # no dates, no build names
SLOW = {"hevc", "av1", "vp9"}  # not for long clips


@dataclass(frozen=True)
class Shape:
    """The format of a clip.

    ticks       length in fifths of a second
    variable    True: a variable frame rate, by dropped frames
    offset_s    time stamp of the first frame
    """

    codec: str
    container: str
    width: int
    height: int
    rate: str
    ticks: int
    variable: bool
    offset_s: float

    @property
    def seconds(self) -> int:
        """Number of frames at 1 FPS."""
        return max(1, -(-self.ticks // TICKS_PER_S))


def choose_shape(rng: np.random.Generator) -> Shape:
    """Choose a format. Most clips last 2 to 4 s, some less than 1 s or up to 12 s, 1 of 300 more than 64 s."""
    draw = rng.random()
    if draw < 1 / 300:
        ticks = int(rng.integers(330, 370))
    elif draw < 0.03:
        ticks = int(rng.integers(2, 5))
    elif draw < 0.06:
        ticks = int(rng.integers(21, 61))
    else:
        ticks = int(rng.integers(11, 21))
    names = [name for name in CODECS if ticks < 100 or name not in SLOW]
    shares = np.array([CODECS[name][0] for name in names])
    codec = str(rng.choice(names, p=shares / shares.sum()))
    container = str(rng.choice(CODECS[codec][1]))
    rate = str(rng.choice(RATES)) if ticks < 100 and codec != "av1" else "24"
    matroska = container in ("mkv", "webm")
    # Other codecs do not support odd sizes.
    sizes = [s for s in SIZES if s[0] % 2 == 0 or codec in ("h264", "mjpeg")]
    width, height = sizes[int(rng.integers(len(sizes)))]
    if ticks > 100:
        width, height = 240, 180
    variable = bool(rng.random() < 0.08) and container in ("mp4", "mkv") and codec in ("h264", "h264_b")
    offset_s = 1.5 if matroska and rng.random() < 0.3 else 0.0
    return Shape(codec, container, width, height, rate, ticks, variable, offset_s)


def encode(states: list[np.ndarray], shape: Shape, path: Path) -> None:
    """Write a video of `shape`; `states` holds one (height, width, 3) uint8 image per tick."""
    size = (shape.width, shape.height)
    video = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", video_size=size, framerate=TICKS_PER_S)
    odd = shape.width % 2 or shape.height % 2
    pixels = ("yuvj" if shape.codec == "mjpeg" else "yuv") + ("444p" if odd else "420p")
    # "format" before "fps", so that each state is converted once
    video = video.video.filter("format", pixels).filter("fps", shape.rate)
    if shape.variable:
        video = video.filter("select", "lt(mod(n,7),4)")
    options = CODECS[shape.codec][2] | {"pix_fmt": pixels}
    if shape.variable:
        options |= {"fps_mode": "vfr"}
    if shape.offset_s:
        options |= {"output_ts_offset": shape.offset_s}
    if shape.container == "mp4" and shape.codec == "hevc":
        options |= {"vtag": "hvc1"}
    muxer = {"mkv": "matroska"}.get(shape.container, shape.container)
    _run(
        video.output(str(path), format=muxer, **EXACT, **options),
        b"".join(image.tobytes() for image in states),
    )


def encode_audio(path: Path) -> None:
    """Write an MP4 file with one second of sound and no video."""
    tone = ffmpeg.input("sine=frequency=440:duration=1", f="lavfi")
    _run(tone.output(str(path), format="mp4", acodec="aac", **EXACT), b"")


def _run(output: ffmpeg.nodes.OutputStream, raw: bytes) -> None:
    """Run ffmpeg with bytes as its standard input; raises UserError with its last messages."""
    try:
        output.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), input=raw, quiet=True, overwrite_output=True)
    except ffmpeg.Error as error:
        message = " / ".join(error.stderr.decode(errors="replace").strip().splitlines()[-4:])
        raise UserError(f"ffmpeg cannot write {output.node.kwargs['filename']}: {message}") from error
