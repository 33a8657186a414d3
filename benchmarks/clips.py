"""The clips that benchmarks/decode.py measures: the ffmpeg program makes them once, in a folder."""

from dataclasses import dataclass, field
from pathlib import Path

import ffmpeg
import imageio_ffmpeg

EXE = imageio_ffmpeg.get_ffmpeg_exe()
X264 = {"vcodec": "libx264", "preset": "medium"}


@dataclass(frozen=True)
class ClipSpec:
    """One clip; the encoded piece is there `repeat` times, by stream copy."""

    file: str
    about: str
    options: dict = field(default_factory=dict)
    size: str = "1280x720"
    seconds: float = 10
    repeat: int = 1

    @property
    def description(self) -> str:
        """Length, height and format."""
        return f"{self.seconds * self.repeat:g} s {self.size.split('x')[1]}p30 {self.about}"


CLIPS = (
    ClipSpec("h264_gop250.mp4", "H.264, B-frames, GOP 250", {**X264, "g": 250, "bf": 3, "b:v": "2500k"}),
    ClipSpec("h264_gop30.mp4", "H.264, B-frames, GOP 30", {**X264, "g": 30, "bf": 3, "b:v": "2500k"}),
    ClipSpec("h264_no_b.mp4", "H.264, no B-frames, GOP 250", {**X264, "g": 250, "bf": 0, "b:v": "2500k"}),
    ClipSpec("hevc.mp4", "HEVC", {"vcodec": "libx265", "preset": "fast", "b:v": "1800k"}),
    ClipSpec("vp9.webm", "VP9", {"vcodec": "libvpx-vp9", "deadline": "good", "cpu-used": 5, "b:v": "1800k"}),
    ClipSpec("av1.mp4", "AV1", {"vcodec": "libsvtav1", "preset": 9, "b:v": "1500k"}),
    ClipSpec("mpeg4.avi", "MPEG-4 in AVI", {"vcodec": "mpeg4", "b:v": "5000k"}),
    ClipSpec("mjpeg.avi", "MJPEG in AVI", {"vcodec": "mjpeg", "q:v": 4}),
    ClipSpec(
        "h264_1080p_3min.mp4",
        "H.264, B-frames, GOP 30",
        {**X264, "g": 30, "bf": 3, "b:v": "4000k"},
        size="1920x1080",
        seconds=12,
        repeat=15,
    ),
)
TINY = ClipSpec("tiny.mp4", "H.264", {**X264, "preset": "ultrafast"}, size="320x240", seconds=2)


def make_clip(spec: ClipSpec, folder: Path) -> Path:
    """Return the clip's path; if there is no such file, encode it."""
    path = folder / spec.file
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part, piece = path.with_name("part_" + path.name), path.with_name("piece_" + path.name)
    video = _moving_scene(spec.size, spec.seconds)
    options = {"pix_fmt": "yuv420p", **spec.options}
    video.output(str(piece if spec.repeat > 1 else part), **options).run(cmd=EXE, quiet=True, overwrite_output=True)
    if spec.repeat > 1:
        looped = ffmpeg.input(str(piece), stream_loop=spec.repeat - 1)
        looped.output(str(part), c="copy").run(cmd=EXE, quiet=True, overwrite_output=True)
        piece.unlink()
    part.rename(path)
    return path


def _moving_scene(size: str, seconds: float):
    """Return a zoom into the Mandelbrot set under a moving test picture, with noise as of a camera."""
    zoom = ffmpeg.input("mandelbrot=size=640x360:rate=30:start_scale=1:end_scale=0.05:end_pts=300", f="lavfi")
    width, height = size.split("x")
    picture = ffmpeg.input(f"testsrc2=size={size}:rate=30:duration={seconds}", f="lavfi")
    zoom = zoom.video.filter("scale", width, height).filter("format", "yuv420p")
    mixed = ffmpeg.filter([picture.video.filter("format", "yuv420p"), zoom], "blend", all_opacity=0.35, shortest=1)
    return mixed.filter("noise", alls=3, allf="t")
