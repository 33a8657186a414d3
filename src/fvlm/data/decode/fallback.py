"""Two further decoders, for files that PyAV opens but cannot decode: decord and the ffmpeg program.

Both work alike: find out when every frame is shown, let `schedule` choose, fetch the chosen frames by number. They get
only files that `open_video` accepts, since neither of them refuses playlists.
"""

import re
from fractions import Fraction
from pathlib import Path

import av
import ffmpeg
import imageio_ffmpeg
import numpy as np
from av.video.stream import VideoStream

from fvlm.data.decode.media import SIDE, Clip, MediaError, Span, schedule
from fvlm.data.decode.packets import FORMATS, LIMIT, Packets, open_video, read_packets, refuse_picture
from fvlm.data.decode.pyav import display_matrix, pixel_aspect, to_square
from fvlm.errors import first_line

# Formats that decord 0.6 decodes correctly; on others it fails or returns wrong frames without an error.
DECORD_FORMATS = ("mov", "matroska")
DECORD_CODECS = ("h264", "hevc", "vp8", "vp9", "mjpeg")
# Clock times and addresses in the decoders' messages, removed so that a ledger is the same each time.
RUN_DEPENDENT = re.compile(r"\[\d\d:\d\d:\d\d\] | @ 0x[0-9a-f]+")


def decode_with_decord(path: Path, crop: bool = True, span_s: Span = None) -> Clip:
    """Return frames decoded by decord, on one thread, because with more decord fails on VP9.

    raises      MediaError corrupt: decord fails, would return wrong frames, or is not installed (it has wheels for few
                machines)
    """
    try:
        import decord
    except ImportError as error:
        raise MediaError("corrupt", f"{path}: decord is not installed") from error
    container, stream = open_video(path)
    with container:
        packets = read_packets(path, container, stream)
        problem, matrix = _unsupported(packets), None
        if not problem:
            matrix = _matrix_of_first(packets, stream)
            problem = _mirrored(matrix)
        aspect = pixel_aspect(packets.aspect, stream.codec_context)
    if problem:
        raise MediaError("corrupt", f"{path}: decord is not used: {problem}")
    if abs(matrix[0]) < abs(matrix[1]):
        aspect = 1 / aspect  # decord has turned the picture by a quarter
    try:
        reader = decord.VideoReader(str(path.absolute()), num_threads=1)  # chooses the stream itself
        starts_s = np.asarray(reader.get_frame_timestamp(range(len(reader))), np.float64)[:, 0]
        order, shown_s, duration_s = packets.timeline()
        if len(starts_s) != len(shown_s) or np.abs(starts_s - starts_s[0] - shown_s).max() > 1e-3:
            raise MediaError("corrupt", f"{path}: decord: its {len(starts_s)} times differ from those of the packets")
        if not np.array_equal(reader.get_key_indices(), np.flatnonzero(packets.keyframe[order])):
            raise MediaError("corrupt", f"{path}: decord: its keyframes differ from those of the packets")
        times_s, positions, duration_s = schedule(shown_s, duration_s, span_s)
        wanted = sorted(set(positions.tolist()))
        images = dict(zip(wanted, reader.get_batch(wanted).asnumpy(), strict=True))
    except (decord.DECORDError, IndexError) as error:
        message = RUN_DEPENDENT.sub("", first_line(error))
        raise MediaError("corrupt", f"{path}: decord: {message}") from error
    square = {i: to_square(av.VideoFrame.from_ndarray(image), crop, aspect) for i, image in images.items()}
    return Clip(np.stack([square[int(i)] for i in positions]), times_s, duration_s, packets.codec)


def _unsupported(packets: Packets) -> str:
    """Return why decord would return wrong frames of a video; empty if it is correct."""
    if packets.format not in DECORD_FORMATS or packets.codec not in DECORD_CODECS:
        return f"{packets.codec} in {packets.format}"
    if not packets.plannable or not packets.shown.all():
        return "its packets do not match its frames one by one"
    latest = np.maximum.accumulate(np.where(packets.keyframe, packets.pts, packets.pts[0]))
    if (packets.pts < latest).any():
        return "an open group of pictures"
    return ""


def _matrix_of_first(packets: Packets, stream: VideoStream) -> tuple[int, int, int, int] | None:
    """The display matrix of the first frame; None if it cannot be decoded."""
    try:
        frames = (frame for packet in packets.held or () for frame in stream.codec_context.decode(packet))
        first = next(frames, None)
    except av.error.FFmpegError:
        first = None
    return first and display_matrix(first)


def _mirrored(matrix: tuple[int, int, int, int] | None) -> str:
    """Return whether a picture is mirrored, which decord ignores (it does turn pictures); empty if it is not."""
    if matrix is None:
        return "its first frame is unknown"
    a, b, c, d = matrix
    return "a mirrored picture" if a * d < b * c else ""


def decode_with_ffmpeg(path: Path, crop: bool = True, span_s: Span = None) -> Clip:
    """Return frames decoded by the ffmpeg program, in two runs: the times of all frames, then the wanted frames.

    raises      MediaError corrupt
    """
    container, stream = open_video(path)
    with container:
        codec, number, form = stream.codec_context.name, stream.index, container.format.name
        square_pixels = pixel_aspect(float(stream.sample_aspect_ratio or 0) or None, stream.codec_context) == 1
    command = imageio_ffmpeg.get_ffmpeg_exe()
    source = ffmpeg.input(
        str(path.absolute()), protocol_whitelist="file,pipe", format_whitelist=FORMATS, threads=1, **LIMIT
    )
    video = source[str(number)]
    try:
        small = video.filter("scale", 16, 16)
        # The file's own time base; the default one ticks once per average frame.
        output = small.output("pipe:", format="framecrc", fps_mode="passthrough", enc_time_base="demux")
        listing, _ = output.run(cmd=command, quiet=True)
        ticks, shown_s, duration_s = _read_times(listing.decode())
        if not len(shown_s):
            raise MediaError("corrupt", f"{path}: ffmpeg decodes no frame")
        refuse_picture(path, form, len(shown_s))
        times_s, positions, duration_s = schedule(shown_s, duration_s, span_s)
        wanted = sorted(set(positions.tolist()))
        # By time, because the filters start to count at 0 again if the size of the picture changes.
        chosen = video.filter("select", "+".join(f"eq(pts,{ticks[i]})" for i in wanted))
        size: tuple = SIDE, SIDE
        more = {"force_original_aspect_ratio": "increase"} if crop else {}
        if crop:
            # A longer picture would need too much memory.
            chosen = chosen.filter("crop", "min(iw,16*ih/sar)", "min(ih,16*iw*sar)")
        if crop and not square_pixels:
            size, more = (f"{SIDE}*max(1,iw*sar/ih)", f"{SIDE}*max(1,ih/(iw*sar))"), {}
        chosen = chosen.filter("scale", *size, flags="area", **more).filter("crop", SIDE, SIDE)
        output = chosen.output("pipe:", format="rawvideo", pix_fmt="rgb24", fps_mode="passthrough")
        raw, _ = output.run(cmd=command, quiet=True)
    except ffmpeg.Error as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise MediaError("corrupt", f"{path}: ffmpeg: {RUN_DEPENDENT.sub('', lines[-1])}") from error
    frames = np.frombuffer(raw, np.uint8).reshape(-1, SIDE, SIDE, 3)
    if len(frames) != len(wanted):
        raise MediaError("corrupt", f"{path}: ffmpeg gave {len(frames)} of {len(wanted)} frames")
    return Clip(frames[np.searchsorted(wanted, positions)], times_s, duration_s, codec)


def _read_times(listing: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the frames' times in ticks and in seconds, and the duration in seconds.

    listing     output of framecrc: a line `#tb 0: 1/12800`, then lines `0, dts, pts, duration, ...`
    """
    unit_s, rows = 0.0, []
    for line in listing.splitlines():
        if line.startswith("#tb 0:"):
            unit_s = float(Fraction(line.split(":")[1].strip()))
        elif line and not line.startswith("#"):
            rows.append([int(field) for field in line.split(",")[2:4]])
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0), 0.0
    table = np.array(rows, np.int64)
    shown_s = (table[:, 0] - table[0, 0]) * unit_s
    return table[:, 0], shown_s, float(shown_s[-1] + table[-1, 1] * unit_s)
