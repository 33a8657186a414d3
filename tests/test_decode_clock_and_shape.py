"""Clocks that start again, times of decoding, pixels that are not square, and streams without a container."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fvlm.data.decode.media import MediaError
from fvlm.data.decode.video import BACKENDS, DECODERS, decode_image, decode_video
from tests.decode_cases import EXE, X264, X265, write

GREY = 12  # of a colour channel; codecs change colours by a few
COLOURS = {"red": (254, 0, 0), "lime": (0, 255, 1), "blue": (0, 0, 254)}


def run(*arguments: object) -> None:
    subprocess.run([EXE, "-v", "error", "-y", *map(str, arguments)], check=True)


def plain(path: Path, colour: str, seconds: int, *options: object) -> Path:
    """A video of one colour."""
    run("-f", "lavfi", "-i", f"color={colour}:s=64x64:r=10:d={seconds}", *options, path)
    return path


def colours(clip) -> str:
    """The first letter of each frame's colour."""
    means = clip.frames.reshape(len(clip.frames), -1, 3).mean(1)
    return "".join(
        next((name[0] for name, colour in COLOURS.items() if np.abs(mean - colour).max() < GREY), "?") for mean in means
    )


TS = ("-c:v", "libx264", "-preset", "ultrafast", "-g", 10, "-f", "mpegts")
JOINS = {  # how the parts begin, in seconds of their clock
    "again": (0, 0, 0),
    "overlapping": (0, 2, 1),
    "a small overlap": (0, 2.6, 5),
    "hours later": (0, 9000, 20000),
    "earlier": (500, 30, 10),
    "in order": (0, 3, 6),
    "over the end of the 33-bit clock": (95440, 95443, 95446),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("join", JOINS)
def test_joined_streams_are_shown_in_order_without_gap_or_overlap(tmp_path, join, backend):
    parts = [
        plain(tmp_path / f"{colour}.ts", colour, 3, *TS, "-output_ts_offset", start).read_bytes()
        for colour, start in zip(COLOURS, JOINS[join], strict=True)
    ]
    (tmp_path / "joined.ts").write_bytes(b"".join(parts))
    clip = decode_video(tmp_path / "joined.ts", backend)
    assert colours(clip) == "rrrlllbbb" and clip.duration_s == pytest.approx(9, abs=0.25)
    assert colours(decode_video(tmp_path / "joined.ts", backend, span_s=(4, 8))) == "llbb"


def test_joined_program_streams(tmp_path):
    for suffix in ("vob", "mpg"):
        parts = [
            plain(tmp_path / f"{colour}.{suffix}", colour, 3, "-c:v", "mpeg2video", "-r", 25).read_bytes()
            for colour in COLOURS
        ]
        joined = tmp_path / f"joined.{suffix}"
        joined.write_bytes(b"".join(parts))
        assert colours(decode_video(joined)) == "rrrlllbbb", suffix


def test_a_pause_of_a_stream_stays(tmp_path):
    """Five seconds without a packet are no other clock."""
    parts = [
        plain(tmp_path / f"{colour}.ts", colour, 3, *TS, "-output_ts_offset", start).read_bytes()
        for colour, start in (("red", 0), ("blue", 8))
    ]
    (tmp_path / "pause.ts").write_bytes(b"".join(parts))
    assert colours(decode_video(tmp_path / "pause.ts")) == "rrrrrrrrbbb"


@pytest.mark.parametrize("rate", ["25", "5", "4", "2"])
@pytest.mark.parametrize(
    ("encoder", "bitstream"), [(X264, "h264_mp4toannexb"), (X265, "hevc_mp4toannexb")], ids=["h264", "hevc"]
)
def test_times_of_decoding_are_not_taken_for_times_of_showing(tmp_path, encoder, bitstream, rate):
    """A stream with B-frames that was copied from an AVI into Matroska."""
    path = write(tmp_path / "a.mp4", "240x240", rate, 8, {**encoder, "preset": "medium", "bf": 3, "g": 50})
    run("-i", path, "-c", "copy", "-bsf:v", bitstream, tmp_path / "a.avi")
    run("-fflags", "+genpts", "-i", tmp_path / "a.avi", "-c", "copy", tmp_path / "a.mkv")
    right, copied, by_ffmpeg = (
        decode_video(tmp_path / name, backend).frames.astype(int)
        for name, backend in (("a.mp4", "pyav"), ("a.mkv", "pyav"), ("a.mkv", "ffmpeg"))
    )
    assert len(copied) == len(by_ffmpeg) >= 7 and np.abs(copied - by_ffmpeg).mean((1, 2, 3)).max() < 4
    moments = min(len(right), len(copied)) - 1  # the copy may have lost the end
    if int(rate) >= 5:  # with fewer frames FFmpeg, too, believes the wrong times for the first second
        assert np.abs(right[:moments] - copied[:moments]).mean((1, 2, 3)).max() < 1


def circle(path: Path, size: str, aspect: str, options: tuple = ()) -> Path:
    """A white circle of 3/4 of the shown height, in a picture of 16:9 that is stored with this size."""
    run(
        *("-f", "lavfi", "-i", "color=black:s=640x360:r=5:d=1,format=gray,geq=lum='255*lt(hypot(X-320,Y-180),135)'"),
        *("-vf", f"scale={size},setsar={aspect}", "-pix_fmt", "yuv420p", *(options or ("-c:v", "libx264")), path),
    )
    return path


def size_of_white(clip) -> tuple[int, int]:
    white = clip.frames[0].mean(-1) > 128
    return int(white.any(0).sum()), int(white.any(1).sum())


SHAPES = {
    "wide pixels": ("a.mp4", "480:360", "4/3", ()),
    "narrow pixels": ("a.mp4", "1280:360", "1/2", ()),
    "in Matroska": ("a.mkv", "480:360", "4/3", ()),
    "in the coded stream alone": ("a.ts", "480:360", "4/3", ()),
    "mpeg2": ("a.mpg", "480:360", "4/3", ("-c:v", "mpeg2video", "-q:v", "2")),
    "unknown": ("a.mp4", "640:360", "0", ()),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_that_are_not_square_are_shown_in_their_shape(tmp_path, shape, backend):
    name, *rest = SHAPES[shape]
    width, height = size_of_white(decode_video(circle(tmp_path / name, *rest), backend))
    assert (width, height) == pytest.approx((168, 168), abs=4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_turned_picture_with_wide_pixels(tmp_path, backend):
    path = circle(tmp_path / "a.mp4", "480:360", "4/3")
    turned = tmp_path / "turned.mp4"
    run("-display_rotation", 90, "-i", path, "-c", "copy", turned)
    assert size_of_white(decode_video(turned, backend)) == pytest.approx((168, 168), abs=4)
    squashed = size_of_white(decode_video(turned, backend, crop=False))
    assert squashed == pytest.approx((168, 168 * 9 / 16), abs=4)  # the whole picture, 9:16, as a square


@pytest.mark.parametrize("backend", ["pyav", "ffmpeg"])
@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mjpeg", "mjpeg"), ("h264", "libx264"), ("hevc", "libx265"), ("m2v", "mpeg2video"), ("m4v", "mpeg4"),
     ("y4m", "rawvideo"), ("ivf", "libvpx"), ("obu", "libsvtav1"), ("h263", "h263")],
)  # fmt: skip
def test_a_stream_without_a_container_is_known_by_its_content(tmp_path, suffix, codec, backend):
    options = ("-c:v", codec, "-s", "176x144", "-r", 25, "-pix_fmt", "yuvj420p" if codec == "mjpeg" else "yuv420p")
    parts = [plain(tmp_path / f"{colour}.{suffix}", colour, 3, *options) for colour in ("red", "blue")]
    unnamed = parts[0].rename(tmp_path / "recording.mp4")
    if suffix not in ("y4m", "ivf"):  # these begin with a header of the file
        unnamed.write_bytes(unnamed.read_bytes() + parts[1].read_bytes())
    assert colours(DECODERS[backend](unnamed)).rstrip("b") == "rrr"


def test_pictures_of_new_formats_are_read_or_named(tmp_path):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "a.avif")
    assert colours(decode_image(tmp_path / "a.avif")) == "r"
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(MediaError, match=r"a\.heic: .*HEIC.*JPEG") as caught:
        decode_image(tmp_path / "a.heic")
    assert caught.value.reason == "not_media"
