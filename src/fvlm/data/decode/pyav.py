"""Decode with PyAV: the cheap plan where the packets tell everything, every frame in order where they do not.

The plan: read all packets without decoding (about 1 % of the cost) to know when each frame is shown; work out
which packets the wanted frames depend on; decode those alone, on one thread, and leave out frames that nothing
refers to (the decoder does for most codecs; of AV1 whole unreferenced chains are cut out of the packets).
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

from fvlm.data.decode.bitstream import av1_cuts
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

NO_TIMES = ("h264", "hevc", "m4v", "mpegvideo", "obu")  # frames follow each other at the stream's rate


def decode(path: Path, crop: bool = True, span_s: Span = None) -> Clip:
    """Frames of a video, or of a span of it, at 1 FPS.

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
    """The clip, or None when something came out otherwise than the packets said."""
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
    """All frames that come out of the stretches, without most of those that are neither wanted nor referred to."""
    runs = runs_of(wanted, packets.pts, packets.keyframe)
    cuts = {} if packets.av1 is None else {k: v for run in runs for k, v in av1_cuts(packets.av1, run, wanted).items()}
    # dav1d heeds the setting only as it stands when the first packet comes.
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
                left = _without(packet, cuts[i]) if i in cuts else packet
                if i >= start and left is not None:
                    context.skip_frame = "DEFAULT" if i in wanted else others
                    yield from context.decode(left)
                if i + 1 == stop:
                    break
            context.skip_frame = "DEFAULT"
            yield from context.decode(None)
    finally:
        if container is not None:
            container.close()


def _without(packet: av.Packet, ranges: list[tuple[int, int]]) -> av.Packet | None:
    """The packet less some of its bytes; None where no frame is left."""
    content, place, kept = bytes(packet), 0, []
    for start, stop in ranges:
        kept.append(content[place:start])
        place = stop
    rest = b"".join([*kept, content[place:]])
    if not rest:
        return None
    left = av.Packet(rest)
    left.pts, left.dts, left.time_base = packet.pts, packet.dts, packet.time_base
    return left


def _decode_in_order(path: Path, packets: Packets, crop: bool, span_s: Span) -> Clip:
    """Decode every frame and keep those shown at the wanted moments; once more where these come out otherwise.

    The moments depend on the duration for a video of more than 64 s alone; the packets give a guess of it.
    """
    known = np.sort(packets.pts[packets.shown & (packets.pts != NO_PTS)])
    shown_s = (known - known[0]) * packets.unit_s if len(known) else np.zeros(1)
    moments_s = np.arange(MAX_FRAMES) + (max(0.0, span_s[0]) if span_s else 0.0)
    with contextlib.suppress(MediaError):  # by the guess the video may end before the span starts
        times_s, _, guess_s = schedule(shown_s, duration_of(shown_s, 0.0), span_s)
        if guess_s > MAX_FRAMES:
            moments_s = moments_s[0] + times_s
    keep: set[int] = set()
    for _ in range(2):
        images, shown_s, duration_s = _decode_every(path, packets.stream, moments_s, keep, crop)
        if not len(shown_s):
            refused = refused_size(path, packets.stream)
            if refused is not None:
                raise MediaError("too_large", f"{path}: {refused}")
            raise MediaError("corrupt", f"{path}: {len(packets.pts)} packets, not one frame decoded")
        times_s, positions, duration_s = schedule(shown_s, duration_s, span_s)
        if set(positions.tolist()) <= images.keys():
            return Clip(np.stack([images[int(i)] for i in positions]), times_s, duration_s, packets.codec)
        keep, moments_s = set(positions.tolist()), np.zeros(0)
    raise MediaError("corrupt", f"{path}: two decodings gave different frames")


def _decode_every(
    path: Path, stream_index: int, moments_s: np.ndarray, keep: set[int], crop: bool
) -> tuple[dict[int, np.ndarray], np.ndarray, float]:
    """Decode the whole stream; undecodable packets are passed over.

    moments_s   what is shown at these seconds after the first frame is kept, (M,) ascending
    keep        numbers of further frames to keep, in the order of showing
    returns     those frames by number, the time of every frame in seconds after the first, the duration in seconds
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
    """A frame's time in ticks; AVI numbers its packets, and that is all."""
    if form != "avi":
        return frame.pts
    if frame.dts is not None:
        return frame.dts
    return before[-1] + 1 if before else 0  # one that the decoder held back to the end


def _frames_of(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    for packet in [*demux(container, stream), None]:
        try:
            yield from stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            continue


class _Scaler(threading.local):
    """One for all frames of a thread: a frame's own one is set up anew for each, which takes as long as scaling."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()


_SCALER = _Scaler()


def to_square(frame: av.VideoFrame, crop: bool = True) -> np.ndarray:
    """One decoded frame as (224, 224, 3) uint8 RGB, upright, antialiased (swscale AREA).

    Transparency is left out: the colours are those that are stored.
    """
    if frame.width * frame.height > MAX_PIXELS:
        raise MediaError("too_large", f"a frame of {frame.width} x {frame.height} pixels")
    width, height = fit(frame.width, frame.height, crop)
    square = frame
    if max(width, height) > LONGEST:
        square, (width, height) = _middle(frame), (SIDE, SIDE)
    image = _SCALER.reformatter.reformat(square, width, height, "rgb24", interpolation="AREA").to_ndarray()
    return np.ascontiguousarray(upright(centre(image), display_matrix(frame)))


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d): a pixel at (x, y) belongs at (a x + c y, b x + d y), but for the scale and where 0 is."""
    side = frame.side_data.get(SideData.DISPLAYMATRIX)
    if side is None:
        return 1, 0, 0, 1
    numbers = np.frombuffer(side, np.int32)
    return int(numbers[0]), int(numbers[1]), int(numbers[3]), int(numbers[4])


def upright(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """A picture turned by quarters and mirrored as the file says."""
    a, b, c, d = matrix
    if abs(a) < abs(b):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _middle(frame: av.VideoFrame) -> av.VideoFrame:
    """The central square of a very long picture, which would be too large once its short side is scaled to 224."""
    short = min(frame.width, frame.height)
    left, top = (frame.width - short) // 2, (frame.height - short) // 2
    image = frame.to_ndarray(format="rgb24")[top : top + short, left : left + short]
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image))
