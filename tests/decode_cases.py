"""Tiny videos of every format, made by the ffmpeg program, and the frames of a plain full decode."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import av
import ffmpeg
import imageio_ffmpeg
import numpy as np
from PIL import Image

EXE = imageio_ffmpeg.get_ffmpeg_exe()
X264 = {"vcodec": "libx264", "preset": "ultrafast"}
X265 = {"vcodec": "libx265", "preset": "ultrafast"}
OPEN_GOP = {"bf": 2, "g": 26, "b_strategy": 0, "x264-params": "open-gop=1"}
B_FRAMES = {**X264, "bf": 3, "g": 40, "b_strategy": 0}


def write(path: Path, size: str, rate: str, seconds: float, options: dict, filters: tuple = ()) -> Path:
    """A moving test picture (testsrc2, which changes with every frame) as a video."""
    video = ffmpeg.input(f"testsrc2=size={size}:rate={rate}:duration={seconds}", f="lavfi").video
    for name, arguments in filters:
        video = video.filter(name, **arguments) if isinstance(arguments, dict) else video.filter(name, arguments)
    options = {"pix_fmt": "yuv420p", "threads": 1, **options}
    run(video.output(str(path), **options))
    return path


def run(output) -> None:
    output.run(cmd=EXE, quiet=True, overwrite_output=True)


def copied(path: Path, name: str, before: dict | None = None, **after) -> Path:
    """The same packets in another file, with options before the input and after it."""
    target = path.with_name(name)
    run(ffmpeg.input(str(path), **before or {}).output(str(target), c="copy", **after))
    return target


def endless(path: Path) -> Path:
    """A progressive JPEG of 8000 x 8000 pixels in 20,000 scans, whose decoding takes hours."""
    file = io.BytesIO()
    Image.new("L", (8000, 8000)).save(file, "jpeg", progressive=True)
    content = file.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    path.write_bytes(content[:-2] + scan * 20_000 + content[-2:])
    return path


def turned(degrees: int) -> Callable[[Path], Path]:
    return lambda path: copied(path, f"turned_{degrees}.mp4", {"display_rotation": degrees})


def without_start(path: Path) -> Path:
    """A transport stream that begins in the middle of a group of pictures."""
    content = path.read_bytes()
    path.write_bytes(content[len(content) // 188 // 4 * 188 :])
    return path


def larger_after(path: Path) -> Path:
    """Another resolution after the first half."""
    more = path.with_name("larger.ts")
    write(more, "320x240", "25", 1.6, {**X264, "g": 10, "output_ts_offset": 1.6})
    joined = path.with_name("joined.ts")
    joined.write_bytes(path.read_bytes() + more.read_bytes())
    return joined


def packed(path: Path) -> Path:
    """MPEG-4 as DivX packed it: a P-frame and the B-frame before it in one packet, then an empty one."""
    target = path.with_name("packed.avi")
    with av.open(str(path)) as source, av.open(str(target), "w") as out:
        stream = source.streams.video[0]
        to = out.add_stream_from_template(stream)
        contents = [bytes(packet) for packet in source.demux(stream) if packet.size]
        first = contents[0].find(b"\x00\x00\x01\xb6")
        contents[0] = contents[0][:first] + b"\x00\x00\x01\xb2DivX503b1393p" + contents[0][first:]
        chunks, i = [contents[0]], 1
        while i < len(contents):
            pair = contents[i : i + 2]
            is_b = len(pair) == 2 and pair[1][pair[1].find(b"\x00\x00\x01\xb6") + 4] >> 6 == 2
            chunks += [pair[0] + pair[1], b"\x00\x00\x01\xb6\x51\x0f"] if is_b else [pair[0]]
            i += 2 if is_b else 1
        for number, content in enumerate(chunks):
            packet = av.Packet(content)
            packet.stream, packet.time_base = to, stream.time_base
            packet.pts = packet.dts = number
            packet.is_keyframe = number == 0
            out.mux(packet)
    return target


@dataclass(frozen=True)
class Case:
    """A video: size, frames per second, seconds, options of the encoder, a last change of the file.

    rate_only       the container stores no times: frame i is shown at i / rate
    colours         largest mean difference of block means that another colour conversion may cause
    """

    file: str
    size: str
    rate: str
    seconds: float
    options: dict = field(default_factory=dict)
    filters: tuple = ()
    then: Callable[[Path], Path] | None = None
    rate_only: bool = False
    colours: float = 3.0

    def make(self, folder: Path) -> Path:
        path = write(folder / self.file, self.size, self.rate, self.seconds, self.options, self.filters)
        return self.then(path) if self.then else path


MJPEG = {"vcodec": "mjpeg", "pix_fmt": "yuvj420p"}
GAP = (("select", "not(between(t,0.9,2.4))*lt(mod(n,7),4)"),)
DROPS = (("select", "not(between(t,0.6,1.3))*lt(mod(n,7),5)"),)
HOLE = (("format", "rgba"), ("geq", {"r": "r(X,Y)", "g": "g(X,Y)", "b": "b(X,Y)", "a": "255*gt(X,80)"}))
INTERLACED = {"flags": "+ilme+ildct", "x264-params": "tff=1"}
CASES = {
    "variable rate, gap": Case("vfr.mp4", "240x240", "30", 3.4, {**X264, "bf": 2, "fps_mode": "vfr"}, GAP),
    "23.976 fps": Case("film.mp4", "240x240", "24000/1001", 3.2, {**X264, "bf": 2}),
    "29.97 fps, open GOP, mkv": Case("ntsc.mkv", "240x320", "30000/1001", 3.2, {**X264, **OPEN_GOP}),
    "60 fps, mov": Case("fast.mov", "240x240", "60", 1.6, {**X264, "bf": 2}),
    "starts at 1.7 s, mkv": Case("late.mkv", "240x240", "30", 2.5, {**X264, "bf": 2, "output_ts_offset": 1.7}),
    "starts at 1.7 s, mp4": Case("late.mp4", "240x240", "30", 2.5, {**X264, "bf": 2, "output_ts_offset": 1.7}),
    "B-frames": Case("b.mp4", "320x240", "30", 3.4, B_FRAMES),
    "B-pyramid": Case("pyramid.mp4", "240x240", "25", 2.4, {**B_FRAMES, "bf": 7, "x264-params": "b-pyramid=normal"}),
    "open GOP": Case("open.mp4", "240x240", "25", 3.2, {**X264, **OPEN_GOP}),
    "intra refresh": Case("refresh.mp4", "240x240", "25", 2.4, {**X264, "g": 20, "intra-refresh": 1}),
    "turned 90": Case("t1.mp4", "320x240", "25", 1.4, X264, then=turned(90)),
    "turned 180": Case("t2.mp4", "320x240", "25", 1.4, X264, then=turned(180)),
    "turned 270": Case("t3.mp4", "320x240", "25", 1.4, X264, then=turned(270)),
    "10 bits": Case("ten.mp4", "240x240", "25", 2.2, {**X264, "bf": 2, "pix_fmt": "yuv420p10le"}),
    "hevc": Case("hevc.mp4", "240x240", "25", 2.6, {**X265, "g": 20}),
    "hevc, pyramid, 10 bits": Case(
        "hevc10.mkv", "240x240", "25", 2.2, {**X265, "pix_fmt": "yuv420p10le", "x265-params": "bframes=4:b-pyramid=1"}
    ),
    "hevc, temporal layers": Case("layers.mp4", "240x240", "25", 2.2, {**X265, "x265-params": "temporal-layers=3"}),
    "odd size, 4:4:4": Case("odd.mp4", "317x241", "25", 1.4, {**X264, "pix_fmt": "yuv444p"}),
    "odd size, mjpeg": Case("odd.mkv", "317x241", "25", 1.4, {"vcodec": "mjpeg", "pix_fmt": "yuvj444p"}),
    "very wide": Case("wide.mp4", "640x32", "25", 1.4, X264, colours=10),
    "very narrow": Case("narrow.mp4", "64x640", "25", 1.4, X264, colours=10),
    "vp9": Case("vp9.webm", "256x240", "24000/1001", 2.5, {"vcodec": "libvpx-vp9", "cpu-used": 8}),
    "vp9, alpha": Case(
        "alpha.webm", "240x240", "10", 2, {"vcodec": "libvpx-vp9", "cpu-used": 8, "pix_fmt": "yuva420p"}, HOLE
    ),
    "vp8": Case("vp8.webm", "256x240", "25", 2.5, {"vcodec": "libvpx", "cpu-used": 8, "auto-alt-ref": 1}),
    "av1": Case("av1.mp4", "240x240", "24", 2.2, {"vcodec": "libsvtav1", "preset": 12, "svtav1-params": "lp=1"}),
    "av1, mkv": Case("av1.mkv", "240x240", "24", 2.2, {"vcodec": "libsvtav1", "preset": 12, "g": 24}),
    "prores 4444": Case(
        "prores.mov", "240x240", "10", 2, {"vcodec": "prores_ks", "profile": 4, "pix_fmt": "yuva444p10le"}, HOLE
    ),
    "png in mov": Case("png.mov", "240x240", "10", 2, {"vcodec": "png", "pix_fmt": "rgba"}, HOLE),
    "gif": Case("a.gif", "240x240", "10", 2.3, {"pix_fmt": "rgb8"}),
    "gif, transparent": Case("hole.gif", "240x240", "10", 1.2, {"pix_fmt": "bgra"}, (*HOLE, ("format", "pal8"))),
    "gif, one frame": Case("one.gif", "240x240", "10", 0.1, {"pix_fmt": "rgb8"}),
    "one frame": Case("one.mp4", "240x240", "25", 0.04, X264),
    "interlaced": Case("fields.mp4", "320x240", "25", 2.2, {**X264, **INTERLACED}),
    "interlaced, ts": Case("fields.ts", "320x240", "25", 2.2, {**X264, **INTERLACED}),
    "mpeg4, B-frames": Case("asp.mp4", "240x240", "25", 2.4, {"vcodec": "mpeg4", "bf": 2}),
    "mpeg4, avi": Case("p.avi", "320x240", "25", 2.6, {"vcodec": "mpeg4"}, rate_only=True),
    "mpeg4, B-frames, avi": Case("asp.avi", "240x240", "25", 2.4, {"vcodec": "mpeg4", "bf": 2}, rate_only=True),
    "mpeg4, packed, avi": Case(
        "div.avi", "240x240", "25", 2.4, {"vcodec": "mpeg4", "bf": 1}, then=packed, rate_only=True
    ),
    "mpeg4, dropped frames, avi": Case(
        "drops.avi", "240x240", "25", 2.4, {"vcodec": "mpeg4", "fps_mode": "vfr"}, DROPS
    ),
    "mjpeg, dropped frames, avi": Case("jd.avi", "240x240", "25", 2.4, {**MJPEG, "fps_mode": "vfr"}, DROPS),
    "mjpeg, avi": Case("j.avi", "320x240", "15", 2.2, {"vcodec": "mjpeg", "pix_fmt": "yuvj420p"}, rate_only=True),
    "mjpeg, 60 fps, mkv": Case("j.mkv", "320x240", "60", 1.4, {"vcodec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "mpeg2, mpg": Case("two.mpg", "320x240", "25", 2.2, {"vcodec": "mpeg2video", "bf": 2}),
    "ts": Case("a.ts", "320x240", "25", 2.6, {**X264, "bf": 2}),
    "flv": Case("a.flv", "320x240", "25", 2.2, {**X264, "bf": 2}),
    "fragmented": Case("frag.mp4", "240x240", "25", 2.6, {**B_FRAMES, "movflags": "frag_keyframe+empty_moov"}),
    "raw h264": Case("a.h264", "240x240", "25", 2.2, {**X264, "bf": 2}, rate_only=True),
    "edit list": Case("e.mp4", "240x240", "25", 3.4, B_FRAMES, then=lambda p: copied(p, "cut.mp4", {"ss": 0.9})),
    "cut inside a group, mkv": Case(
        *("c.mkv", "240x240", "25", 3.4, {**X264, "g": 30, "bf": 2}),
        then=lambda p: copied(p, "c2.mkv", ss=0.7, copyinkf=None),
    ),
    "cut inside a group, ts": Case("c.ts", "240x240", "25", 3.2, {**X264, "g": 20}, then=without_start),
    "another size in mid-stream": Case("small.ts", "240x180", "25", 1.6, {**X264, "g": 10}, then=larger_after),
    "longer than 64 s": Case("long.mp4", "240x240", "5", 66.5, {**X264, "bf": 2, "g": 50}),
    "under a second": Case("short.mp4", "320x180", "30", 0.3, X264),
}


@dataclass(frozen=True)
class Shown:
    """The result of a full decode: every frame with its block means, and the frames expected at each time."""

    frames: list[av.VideoFrame]
    every: np.ndarray
    chosen: list[int]
    times_s: np.ndarray
    duration_s: float


def full_decode(path: Path, case: Case | None = None, span_s: tuple[float, float] | None = None) -> Shown:
    """Decode every frame in the simplest way; find the expected ones by a search over all."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames, packets = [], list(container.demux(stream))
        for packet in packets:
            try:
                frames += packet.decode()
            except av.error.FFmpegError:
                continue
        unit_s = float(stream.time_base)
    if case is not None and case.rate_only:
        above, _, below = case.rate.partition("/")
        step_s = int(below or 1) / int(above)
        times_s, last_s = [i * step_s for i in range(len(frames))], step_s
    else:
        times_s = [(frame.pts - frames[0].pts) * unit_s for frame in frames]
        last_s = (frames[-1].duration or 0) * unit_s or float(np.median(np.diff(times_s)))
    start_s, end_s = span_s or (0.0, np.inf)
    duration_s = min(times_s[-1] + last_s, end_s) - start_s
    wanted_s = [i * duration_s / 64 for i in range(64)]
    if duration_s <= 64:
        wanted_s = [float(t) for t in range(65) if t == 0 or t < duration_s - 1e-6]
    chosen = [max(i for i, t in enumerate(times_s) if t <= start_s + wanted + 1e-6) for wanted in wanted_s]
    every = block_means(np.stack([plain_square(frame) for frame in frames]))
    return Shown(frames, every, chosen, np.array(wanted_s), duration_s)


def plain_square(frame: av.VideoFrame) -> np.ndarray:
    """224 x 224 by way of the whole RGB picture and Pillow, turned as its display matrix says."""
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    image = image.rotate(frame.rotation, expand=True)
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    return np.asarray(image.resize((224, 224), Image.Resampling.BOX, (left, top, left + short, top + short)))


def block_means(frames: np.ndarray) -> np.ndarray:
    """(T, 16, 16, 3) means of 14 x 14 pixels."""
    return frames.reshape(-1, 16, 14, 16, 14, 3).astype(np.float32).mean((2, 4))
