"""Two further decoders, for files that PyAV opens and cannot decode: decord and the ffmpeg program.

They follow the same rule: learn when every frame is shown, let `schedule` choose, fetch those by number.
Use `open_video` of the PyAV module first: it refuses what is no video, and neither of these two does.
"""

from pathlib import Path

import av
import ffmpeg
import imageio_ffmpeg
import numpy as np

from fvlm.data.media import SIDE, Clip, MediaError, schedule
from fvlm.data.pyav import FORMATS, to_square


def decode_with_decord(path: Path, codec: str, stream: int, crop: bool = True) -> Clip:
    """Frames by timestamp; one thread, because with more decord fails on VP9.

    raises      MediaError corrupt, also where decord is not installed (it has wheels for few machines)
    """
    try:
        import decord
    except ImportError as error:
        raise MediaError("corrupt", f"{path}: decord is not installed") from error
    try:
        reader = decord.VideoReader(str(path), num_threads=1)  # picks the stream itself
        spans_s = np.asarray(reader.get_frame_timestamp(range(len(reader))), np.float64)
        starts_s, ends_s = spans_s[:, 0] - spans_s[0, 0], spans_s[:, 1] - spans_s[0, 0]
        times_s, positions = schedule(starts_s, float(ends_s[-1]))
        wanted = sorted(set(positions.tolist()))
        images = dict(zip(wanted, reader.get_batch(wanted).asnumpy(), strict=True))
    except (decord.DECORDError, IndexError) as error:
        raise MediaError("corrupt", f"{path}: decord: {str(error).splitlines()[0]}") from error
    square = {i: to_square(av.VideoFrame.from_ndarray(image), crop) for i, image in images.items()}
    return Clip(np.stack([square[int(i)] for i in positions]), times_s, float(ends_s[-1]), codec)


def decode_with_ffmpeg(path: Path, codec: str, stream: int, crop: bool = True) -> Clip:
    """Frames from the ffmpeg program: once for the times of all frames, once for the wanted ones.

    raises      MediaError corrupt
    """
    command = imageio_ffmpeg.get_ffmpeg_exe()
    source = ffmpeg.input(str(path), protocol_whitelist="file,pipe", format_whitelist=FORMATS, threads=1)
    video = source[str(stream)]
    try:
        small = video.filter("scale", 16, 16)
        # The file's own clock: the default one ticks once per average frame.
        output = small.output("pipe:", format="framecrc", fps_mode="passthrough", enc_time_base="demux")
        listing, _ = output.run(cmd=command, quiet=True)
        shown_s, duration_s = _read_times(listing.decode())
        if not len(shown_s):
            raise MediaError("corrupt", f"{path}: ffmpeg decodes no frame")
        times_s, positions = schedule(shown_s, duration_s)
        wanted = sorted(set(positions.tolist()))
        chosen = video.filter("select", "+".join(f"eq(n,{i})" for i in wanted))
        more = {"force_original_aspect_ratio": "increase"} if crop else {}
        chosen = chosen.filter("scale", SIDE, SIDE, flags="area", **more).filter("crop", SIDE, SIDE)
        output = chosen.output("pipe:", format="rawvideo", pix_fmt="rgb24", fps_mode="passthrough")
        raw, _ = output.run(cmd=command, quiet=True)
    except ffmpeg.Error as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise MediaError("corrupt", f"{path}: ffmpeg: {lines[-1]}") from error
    frames = np.frombuffer(raw, np.uint8).reshape(-1, SIDE, SIDE, 3)
    if len(frames) != len(wanted):
        raise MediaError("corrupt", f"{path}: ffmpeg gave {len(frames)} of {len(wanted)} frames")
    return Clip(frames[np.searchsorted(wanted, positions)], times_s, duration_s, codec)


def _read_times(listing: str) -> tuple[np.ndarray, float]:
    """Times and duration from framecrc: a line `#tb 0: 1/12800`, then lines `0, dts, pts, duration, ...`."""
    unit_s, rows = 0.0, []
    for line in listing.splitlines():
        if line.startswith("#tb 0:"):
            above, below = line.split(":")[1].split("/")
            unit_s = int(above) / int(below)
        elif line and not line.startswith("#"):
            rows.append([int(field) for field in line.split(",")[2:4]])
    if not rows:
        return np.zeros(0), 0.0
    table = np.array(rows, np.int64)
    shown_s = (table[:, 0] - table[0, 0]) * unit_s
    return shown_s, float(shown_s[-1] + table[-1, 1] * unit_s)
