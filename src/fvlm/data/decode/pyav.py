"""Decode with PyAV: only the needed packets if the packets describe the frames, else every frame in order.

The plan: read all packets without decoding (about 1 % of the cost) to learn when each frame is shown. Find the packets
that the wanted frames depend on. Decode only those, on one thread; the decoder skips frames that no other frame uses.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
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
    NO_TIMES,
    Packets,
    demux,
    describes_itself,
    duration_of,
    open_video,
    read_packets,
    refused_size,
    runs_of,
)

RESTARTS = ("mpegts", "mpeg")  # formats whose clock may start again in the middle: they are joined byte by byte
BACK_S, FORWARD_S = 0.1, 10.0  # a time this far before or after the one that is due is another clock's, as in FFmpeg


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
    """Return the clip, or None if a wanted frame is missing or damaged, or the times contradict the decoder."""
    order, shown_s, duration_s = packets.timeline()
    times_s, positions, duration_s = schedule(shown_s, duration_s, span_s)
    wanted = set(order[positions].tolist())
    wanted_pts = {int(packets.pts[i]) for i in wanted}
    images: dict[int, np.ndarray] = {}
    in_order = packets.in_order
    try:
        for frame in _decode_runs(path, context, packets, wanted):
            if frame is None or (in_order and context.has_b_frames):
                return None
            time = frame.dts if packets.format == "avi" else frame.pts
            if time in wanted_pts and time not in images:
                if frame.is_corrupt:
                    return None
                images[time] = to_square(frame, crop, pixel_aspect(packets.aspect, context))
    except av.error.FFmpegError:
        return None
    if images.keys() != wanted_pts:
        return None
    frames = np.stack([images[int(packets.pts[i])] for i in order[positions]])
    return Clip(frames, times_s, duration_s, context.name)


def _decode_runs(
    path: Path, context: av.VideoCodecContext, packets: Packets, wanted: set[int]
) -> Iterator[av.VideoFrame | None]:
    """Frames of the packets that the wanted ones depend on; most of those that no frame uses are skipped.

    None if the decoder shows two frames in another order than their times: these are then times of decoding.
    """
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
            last = None
            for frame in _decode_run(context, source, start, stop, wanted, others):
                ordered = packets.format == "avi" or last is None or last < frame.pts
                last = frame.pts
                yield frame if ordered else None
    finally:
        if container is not None:
            container.close()


def _decode_run(
    context: av.VideoCodecContext, source: Iterator[tuple[int, av.Packet]], start: int, stop: int, wanted: set[int],
    others: str,
) -> Iterator[av.VideoFrame]:  # fmt: skip
    for i, packet in source:
        if i >= start:
            context.skip_frame = "DEFAULT" if i in wanted else others
            yield from context.decode(packet)
        if i + 1 == stop:
            break
    context.skip_frame = "DEFAULT"
    yield from context.decode(None)


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
    images, last, before, moment = {}, 0.0, None, 0
    with container:
        form, unit_s = container.format.name, float(stream.time_base)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        aspect = float(stream.sample_aspect_ratio or 0) or None
        clock = _Clock(form, unit_s, rate)
        ticks = clock.ticks
        for frame in frames_of(container, stream):
            number = len(ticks)
            clock.add(frame)
            now_s = (
                number / rate if form in NO_TIMES or None in (ticks[0], ticks[-1]) else (ticks[-1] - ticks[0]) * unit_s
            )
            shape = pixel_aspect(aspect, stream.codec_context)
            upcoming = int(np.searchsorted(moments_s, now_s - 1e-6, side="left"))
            if upcoming > moment:
                images[number - 1], moment = to_square(before, crop, shape), upcoming
            if number in keep:
                images[number] = to_square(frame, crop, shape)
            before, last = frame, (frame.duration or 0) * unit_s
    if before is not None and moment < len(moments_s):
        images[len(ticks) - 1] = to_square(before, crop, shape)
    if form in NO_TIMES or None in ticks:
        return images, np.arange(len(ticks)) / rate, len(ticks) / rate
    shown = np.maximum.accumulate(np.array(ticks, np.int64))
    shown_s = (shown - shown[:1]) * unit_s
    return images, shown_s, duration_of(shown_s, last) if ticks else 0.0


class _Clock:
    """The times of decoded frames in ticks, in the order of showing.

    A container may give the times of decoding as those of showing. Of both, those that go back less often are believed,
    as FFmpeg does. Where the clock of a joined stream starts again, the next part follows without gap or overlap.
    """

    def __init__(self, form: str, unit_s: float, rate: float) -> None:
        self.form = form
        self.back, self.forward = BACK_S / unit_s, FORWARD_S / unit_s
        self.step = max(1, round(1 / rate / unit_s))  # ticks that a frame lasts if it does not say
        self.ticks: list[int | None] = []
        self._shift, self._due = 0, None
        self._last: dict[str, int] = {}
        self._went_back = {"pts": 0, "dts": 0}

    def add(self, frame: av.VideoFrame) -> None:
        tick = self._number(frame) if self.form == "avi" else self._believed(frame)
        if tick is not None and self.form in RESTARTS:
            tick += self._shift
            if self._due is not None and not -self.back <= tick - self._due <= self.forward:
                self._shift += self._due - tick
                tick = self._due
            self._due = tick + (frame.duration or self.step)
        self.ticks.append(tick)

    def _believed(self, frame: av.VideoFrame) -> int | None:
        for kind, time in (("pts", frame.pts), ("dts", frame.dts)):
            if time is not None:
                self._went_back[kind] += time <= self._last.get(kind, NO_PTS)
                self._last[kind] = time
        if frame.pts is None or (frame.dts is not None and self._went_back["pts"] > self._went_back["dts"]):
            return frame.dts
        return frame.pts

    def _number(self, frame: av.VideoFrame) -> int:
        """The number of a frame's packet in an AVI, which stores no times."""
        if frame.dts is not None:
            return frame.dts
        return self.ticks[-1] + 1 if self.ticks else 0  # frames that leave the decoder at the end have no number


def frames_of(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Yield all frames as they are decoded, without damaged packets."""
    for packet in chain(demux(container, stream), [None]):
        try:
            yield from stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            continue


class _Scaler(threading.local):
    """One reformatter per thread: a new one for each frame costs as much as the scaling."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()


_SCALER = _Scaler()


def pixel_aspect(container: float | None, context: av.VideoCodecContext) -> float:
    """The aspect ratio of a pixel: the container's, else the one in the coded stream, else square."""
    return container or float(context.sample_aspect_ratio or 0) or 1.0


def to_square(frame: av.VideoFrame, crop: bool = True, aspect: float = 1.0) -> np.ndarray:
    """Return a decoded frame as (224, 224, 3) uint8 RGB, upright, antialiased (swscale AREA), without transparency.

    aspect      width of a stored pixel divided by its height
    """
    if frame.width * frame.height > MAX_PIXELS:
        raise MediaError("too_large", f"a frame of {frame.width} x {frame.height} pixels")
    width, height = fit(frame.width * aspect, frame.height, crop)
    square = frame
    if max(width, height) > LONGEST:
        square, (width, height) = _middle(frame, aspect), (SIDE, SIDE)
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


def _middle(frame: av.VideoFrame, aspect: float) -> av.VideoFrame:
    """The central part, shown as a square, of a picture that would need too much memory with its short side at 224."""
    short = min(frame.width * aspect, frame.height)
    width, height = max(1, round(short / aspect)), max(1, round(short))
    left, top = (frame.width - width) // 2, (frame.height - height) // 2
    image = frame.to_ndarray(format="rgb24")[top : top + height, left : left + width]
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image))
