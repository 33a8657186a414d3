"""Decode with PyAV: only the needed packets if the packets describe the frames, else every frame in order.

The plan: read all packets without decoding (about 1 % of the cost) to learn when each frame is shown. Find the packets
that the wanted frames depend on. Decode only those, on one thread; the decoder skips frames that no other frame uses.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from fvlm.data.decode.media import LONGEST, MAX_FRAMES, MAX_PIXELS, SIDE, Clip, MediaError, Span, centre, fit, schedule
from fvlm.data.decode.packets import (
    NO_PTS,
    Packets,
    demux,
    describes_itself,
    duration_of,
    open_video,
    read_packets,
    refused_size,
    runs_of,
)

NO_TIMES = ("h264", "hevc", "m4v", "mpegvideo", "obu")  # formats without times: frames follow at the stream's rate


def decode(path: Path, crop: bool = True, span_s: Span = None) -> Clip:
    """Return the frames of a video, or of a span of it, at 1 FPS.

    raises      MediaError
    """
    container, stream = open_video(path, probe=not describes_itself(path))
    with container:
        packets = read_packets(path, container, stream)
        clip = _decode_planned(path, stream.codec_context, packets, crop, span_s) if packets.plannable else None
    return clip or _decode_in_order(path, replace(packets, held=None), crop, span_s)


def _decode_planned(
    path: Path, context: av.VideoCodecContext, packets: Packets, crop: bool, span_s: Span
) -> Clip | None:
    """Return the clip, or None if a wanted frame is missing or damaged."""
    order, shown_s, duration_s = packets.timeline()
    times_s, positions, duration_s = schedule(shown_s, duration_s, span_s)
    wanted = set(order[positions].tolist())
    wanted_pts = {int(packets.pts[i]) for i in wanted}
    images: dict[int, np.ndarray] = {}
    try:
        for frame in _decode_runs(path, context, packets, wanted):
            time = frame.dts if packets.format == "avi" else frame.pts
            if time in wanted_pts and time not in images:
                if frame.is_corrupt:
                    return None
                images[time] = to_square(frame, crop)
    except av.error.FFmpegError:
        return None
    if images.keys() != wanted_pts:
        return None
    frames = np.stack([images[int(packets.pts[i])] for i in order[positions]])
    return Clip(frames, times_s, duration_s, context.name)


def _decode_runs(
    path: Path, context: av.VideoCodecContext, packets: Packets, wanted: set[int]
) -> Iterator[av.VideoFrame]:
    """Frames of the packets that the wanted ones depend on; most of those that no frame uses are skipped."""
    runs = runs_of(wanted, packets.pts, packets.keyframe)
    # dav1d reads the setting at the first packet only, so it would skip wanted frames too.
    others = "NONREF" if packets.skip and context.name != "libdav1d" else "DEFAULT"
    source: Iterator[tuple[int, av.Packet]]
    container = None
    if packets.held is None:
        container, stream = open_video(path, packets.stream, probe=False)
        source = enumerate(demux(container, stream))
    else:
        source = ((i, packets.held[i]) for start, stop in runs for i in range(start, stop))
    try:
        for number, (start, stop) in enumerate(runs):
            if number:
                context.flush_buffers()
            for i, packet in source:
                if i >= start:
                    context.skip_frame = "DEFAULT" if i in wanted else others
                    yield from context.decode(packet)
                if i + 1 == stop:
                    break
            context.skip_frame = "DEFAULT"
            yield from context.decode(None)
    finally:
        if container is not None:
            container.close()


def _decode_in_order(path: Path, packets: Packets, crop: bool, span_s: Span) -> Clip:
    """Decode every frame and keep those shown at the wanted moments; decode again if the moments were wrong.

    The moments depend on the duration only if the video is longer than 64 s. The packets give an estimate of it.
    """
    known = np.sort(packets.pts[packets.shown & (packets.pts != NO_PTS)])
    shown_s = (known - known[0]) * packets.unit_s if len(known) else np.zeros(1)
    moments_s = np.arange(MAX_FRAMES) + (max(0.0, span_s[0]) if span_s else 0.0)
    with contextlib.suppress(MediaError):  # the estimate may end before the span starts
        times_s, _, estimate_s = schedule(shown_s, duration_of(shown_s, 0.0), span_s)
        if estimate_s > MAX_FRAMES:
            moments_s = moments_s[0] + times_s
    keep: set[int] = set()
    for _ in range(2):
        images, shown_s, duration_s = _decode_every(path, packets.stream, moments_s, keep, crop)
        if not len(shown_s):
            refused = refused_size(path, packets.stream)
            if refused is not None:
                raise MediaError("too_large", f"{path}: {refused}")
            raise MediaError("corrupt", f"{path}: {len(packets.pts)} packets, no frame could be decoded")
        times_s, positions, duration_s = schedule(shown_s, duration_s, span_s)
        if set(positions.tolist()) <= images.keys():
            return Clip(np.stack([images[int(i)] for i in positions]), times_s, duration_s, packets.codec)
        keep, moments_s = set(positions.tolist()), np.zeros(0)
    raise MediaError("corrupt", f"{path}: two decodings gave different frames")


def _decode_every(
    path: Path, stream_index: int, moments_s: np.ndarray, keep: set[int], crop: bool
) -> tuple[dict[int, np.ndarray], np.ndarray, float]:
    """Decode the whole stream, without the packets that cannot be decoded.

    moments_s   (M,) ascending, seconds after the first frame: the frame shown at each is kept
    keep        numbers of further frames to keep, counted in the order of showing
    returns     the kept frames by number, the time of every frame in seconds after the first, the duration in seconds
    """
    container, stream = open_video(path, stream_index)
    images, ticks, last, before, moment = {}, [], 0.0, None, 0
    with container:
        form, unit_s = container.format.name, float(stream.time_base)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        for frame in _frames_of(container, stream):
            number = len(ticks)
            ticks.append(_time_of(frame, form, ticks))
            now_s = (
                number / rate if form in NO_TIMES or None in (ticks[0], ticks[-1]) else (ticks[-1] - ticks[0]) * unit_s
            )
            upcoming = int(np.searchsorted(moments_s, now_s - 1e-6, side="left"))
            if upcoming > moment:
                images[number - 1], moment = to_square(before, crop), upcoming
            if number in keep:
                images[number] = to_square(frame, crop)
            before, last = frame, (frame.duration or 0) * unit_s
    if before is not None and moment < len(moments_s):
        images[len(ticks) - 1] = to_square(before, crop)
    if form in NO_TIMES or None in ticks:
        return images, np.arange(len(ticks)) / rate, len(ticks) / rate
    shown = np.maximum.accumulate(np.array(ticks, np.int64))
    shown_s = (shown - shown[:1]) * unit_s
    return images, shown_s, duration_of(shown_s, last) if ticks else 0.0


def _time_of(frame: av.VideoFrame, form: str, before: list[int | None]) -> int | None:
    """A frame's time in ticks; for AVI the number of its packet."""
    if form != "avi":
        return frame.pts
    if frame.dts is not None:
        return frame.dts
    return before[-1] + 1 if before else 0  # frames that leave the decoder at the end have no number


def _frames_of(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    for packet in [*demux(container, stream), None]:
        try:
            yield from stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            continue


class _Scaler(threading.local):
    """One reformatter per thread: a new one for each frame costs as much as the scaling."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()


_SCALER = _Scaler()


def to_square(frame: av.VideoFrame, crop: bool = True) -> np.ndarray:
    """Return a decoded frame as (224, 224, 3) uint8 RGB, upright, antialiased (swscale AREA), without transparency."""
    if frame.width * frame.height > MAX_PIXELS:
        raise MediaError("too_large", f"a frame of {frame.width} x {frame.height} pixels")
    width, height = fit(frame.width, frame.height, crop)
    square = frame
    if max(width, height) > LONGEST:
        square, (width, height) = _middle(frame), (SIDE, SIDE)
    image = _SCALER.reformatter.reformat(square, width, height, "rgb24", interpolation="AREA").to_ndarray()
    return np.ascontiguousarray(upright(centre(image), display_matrix(frame)))


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d): a pixel at (x, y) is shown at (a x + c y, b x + d y), up to scale and origin."""
    side = frame.side_data.get(SideData.DISPLAYMATRIX)
    if side is None:
        return 1, 0, 0, 1
    numbers = np.frombuffer(side, np.int32)
    return int(numbers[0]), int(numbers[1]), int(numbers[3]), int(numbers[4])


def upright(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turn a picture by quarters and mirror it, as its display matrix states."""
    a, b, c, d = matrix
    if abs(a) < abs(b):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _middle(frame: av.VideoFrame) -> av.VideoFrame:
    """Central square of a very long picture, which would need too much memory with its short side scaled to 224."""
    short = min(frame.width, frame.height)
    left, top = (frame.width - short) // 2, (frame.height - short) // 2
    image = frame.to_ndarray(format="rgb24")[top : top + short, left : left + short]
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image))
