"""Decode with PyAV: the cheap plan where the packets tell everything, every frame in order where they do not.

The plan: read all packets without decoding (about 1 % of the cost) to know when each frame is shown; work out
which packets the wanted frames depend on; decode those alone, on one thread, and let the decoder leave out
frames that nothing refers to.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from fvlm.data.media import MAX_PIXELS, Clip, MediaError, centre, fit, schedule

# Containers that hold their own content. Playlists and concat scripts, which name other files, are refused.
FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,ivf,nut,mxf,dv,rm,h264,hevc,m4v,obu,"
    "mp3,aac,wav,flac"  # recognised so that the reason can be 'no video stream'
)
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
# One packet is one shown frame, with its time on it: only here can packets stand for frames.
PLANNED_FORMATS = {"mov", "matroska"}
PLANNED_CODECS = {"h264", "hevc", "vp9", "av1", "libdav1d", "mpeg4", "mjpeg"}
HELD_BYTES = 256 << 20  # packets of a larger file are read a second time rather than kept


@dataclass(frozen=True)
class Packets:
    """All packets of a video stream, in the order in which they are decoded.

    pts         (P,) int64 in units of `unit_s`; -1 << 62 where a packet has none
    keyframe    (P,) bool
    shown       (P,) bool, False: needed by others, never shown (before the start of an edit list)
    lengths     (P,) int64, durations in units of `unit_s`, 0 where unknown
    """

    pts: np.ndarray
    keyframe: np.ndarray
    shown: np.ndarray
    lengths: np.ndarray
    unit_s: float
    damaged: bool


NO_PTS = -(1 << 62)


def open_video(path: Path) -> tuple[InputContainer, VideoStream]:
    """Open a file and choose its video stream; the decoder gets one thread.

    raises      MediaError not_media, no_video_stream, too_large, corrupt (a known format that does not open)
    """
    try:
        container = av.open(str(path), options=OPTIONS, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        reason = "corrupt" if _looks_like_video(path) else "not_media"
        raise MediaError(reason, f"{path}: {error}") from error
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        container.close()
        raise MediaError("no_video_stream", f"{path}: {len(container.streams)} streams, none is video")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    context = stream.codec_context
    if context is None or context.codec is None:
        container.close()
        raise MediaError("corrupt", f"{path}: no decoder for its video stream")
    if context.width * context.height > MAX_PIXELS:
        container.close()
        raise MediaError("too_large", f"{path}: {context.width} x {context.height} pixels")
    context.thread_count = 1
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    return container, stream


def _looks_like_video(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] in (b"ftyp", b"moov", b"mdat") or head[:4] in (b"\x1aE\xdf\xa3", b"RIFF", b"FLV\x01")


def decode(path: Path, crop: bool = True) -> Clip:
    """Frames of a video at 1 FPS.

    raises      MediaError
    """
    container, stream = open_video(path)
    with container:
        codec = stream.codec_context.name
        packets, held = _read_packets(container, stream, keep=path.stat().st_size <= HELD_BYTES)
        if not len(packets.pts):
            raise MediaError("corrupt", f"{path}: no packet in its video stream")
        clip, format_name = None, container.format.name.split(",")[0]
        if format_name in PLANNED_FORMATS and codec in PLANNED_CODECS and _sure(packets):
            clip = _decode_planned(path, stream.codec_context, packets, held, crop)
    return clip or _decode_in_order(path, packets, codec, crop)


def _demux(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """All packets with content; a damaged end of the file ends them."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        if packet.size:
            yield packet


def _read_packets(container: InputContainer, stream: VideoStream, keep: bool) -> tuple[Packets, list[av.Packet] | None]:
    held: list[av.Packet] | None = [] if keep else None
    pts, keyframe, shown, lengths, damaged = [], [], [], [], False
    for packet in _demux(container, stream):
        pts.append(NO_PTS if packet.pts is None else packet.pts)
        keyframe.append(packet.is_keyframe)
        shown.append(not packet.is_discard)
        lengths.append(packet.duration or 0)
        damaged = damaged or packet.is_corrupt
        if held is not None:
            held.append(packet)
    table = Packets(
        pts=np.array(pts, np.int64),
        keyframe=np.array(keyframe, bool),
        shown=np.array(shown, bool),
        lengths=np.array(lengths, np.int64),
        unit_s=float(stream.time_base),
        damaged=damaged,
    )
    return table, held


def _sure(packets: Packets) -> bool:
    """Whether packets can stand for frames: every time known, none twice, a keyframe first."""
    times = packets.pts[packets.shown]
    return bool(
        not packets.damaged
        and packets.keyframe[0]
        and len(times)
        and (packets.pts != NO_PTS).all()
        and len(np.unique(times)) == len(times)
    )


def _duration(shown_s: np.ndarray, last_s: float) -> float:
    """The last frame lasts as long as its packet says, else as the usual step, else 1/25 s."""
    if last_s <= 0:
        last_s = float(np.median(np.diff(shown_s))) if len(shown_s) > 1 else 0.04
    return float(shown_s[-1]) + last_s


def runs_of(wanted: Iterable[int], pts: np.ndarray, keyframe: np.ndarray) -> list[tuple[int, int]]:
    """Stretches [start, stop) of packets to decode so that every wanted packet gives its frame.

    A stretch starts at a keyframe. A frame shown before the keyframe it follows in the file (open GOP) refers
    to the group before, and so needs the keyframe before that one.
    """
    keys = np.flatnonzero(keyframe)
    runs: list[tuple[int, int]] = []
    for packet in sorted(wanted):
        k = int(np.searchsorted(keys, packet, side="right")) - 1
        while k > 0 and pts[packet] < pts[keys[k]]:
            k -= 1
        start = int(keys[k])
        if runs and start < runs[-1][1]:
            runs[-1] = (runs[-1][0], packet + 1)
        else:
            runs.append((start, packet + 1))
    return runs


def _decode_planned(
    path: Path, context: av.VideoCodecContext, packets: Packets, held: list[av.Packet] | None, crop: bool
) -> Clip | None:
    """The clip, or None when something came out otherwise than the packets said."""
    order = np.argsort(packets.pts, kind="stable")
    order = order[packets.shown[order]]
    shown_s = (packets.pts[order] - packets.pts[order[0]]) * packets.unit_s
    duration_s = _duration(shown_s, packets.lengths[order[-1]] * packets.unit_s)
    times_s, positions = schedule(shown_s, duration_s)
    wanted = set(order[positions].tolist())
    wanted_pts = {int(packets.pts[i]) for i in wanted}
    runs = runs_of(wanted, packets.pts, packets.keyframe)
    images: dict[int, np.ndarray] = {}
    try:
        for frame in _decode_runs(path, context, runs, wanted, held):
            if frame.pts in wanted_pts and frame.pts not in images:
                if frame.is_corrupt:
                    return None
                images[frame.pts] = to_square(frame, crop)
    except av.error.FFmpegError:
        return None
    if images.keys() != wanted_pts:
        return None
    frames = np.stack([images[int(packets.pts[i])] for i in order[positions]])
    return Clip(frames, times_s, duration_s, context.name)


def _decode_runs(
    path: Path,
    context: av.VideoCodecContext,
    runs: list[tuple[int, int]],
    wanted: set[int],
    held: list[av.Packet] | None,
) -> Iterator[av.VideoFrame]:
    """All frames that come out of the stretches, without those that are neither wanted nor referred to."""
    source: Iterator[tuple[int, av.Packet]]
    container = None
    if held is None:
        container, stream = open_video(path)
        source = enumerate(_demux(container, stream))
    else:
        source = ((i, held[i]) for start, stop in runs for i in range(start, stop))
    try:
        for number, (start, stop) in enumerate(runs):
            if number:
                context.flush_buffers()
            for i, packet in source:
                if i >= start:
                    context.skip_frame = "DEFAULT" if i in wanted else "NONREF"
                    yield from context.decode(packet)
                if i + 1 == stop:
                    break
            context.skip_frame = "DEFAULT"
            yield from context.decode(None)
    finally:
        if container is not None:
            container.close()


def _decode_in_order(path: Path, packets: Packets, codec: str, crop: bool) -> Clip:
    """Decode every frame; which to keep is guessed from the packets and mended once the times are known."""
    known = np.sort(packets.pts[packets.shown & (packets.pts != NO_PTS)])
    shown_s = (known - known[0]) * packets.unit_s if len(known) else np.zeros(1)
    keep = set(schedule(shown_s, _duration(shown_s, 0.0))[1].tolist())
    for _ in range(2):
        images, shown_s, duration_s = _decode_every(path, keep, crop)
        if not len(shown_s):
            raise MediaError("corrupt", f"{path}: {len(packets.pts)} packets, not one frame decoded")
        times_s, positions = schedule(shown_s, duration_s)
        if set(positions.tolist()) <= images.keys():
            return Clip(np.stack([images[int(i)] for i in positions]), times_s, duration_s, codec)
        keep = set(positions.tolist())
    raise MediaError("corrupt", f"{path}: two decodings gave different frames")


def _decode_every(path: Path, keep: set[int], crop: bool) -> tuple[dict[int, np.ndarray], np.ndarray, float]:
    """Decode the whole stream; undecodable packets are passed over.

    keep        numbers of the frames to convert, in the order of showing
    returns     those frames, the time of every frame in seconds after the first, the duration in seconds
    """
    container, stream = open_video(path)
    images, pts, last = {}, [], 0.0
    with container:
        # AVI stores no presentation times: frames follow each other at the stream's rate.
        counted = container.format.name in ("avi", "h264", "hevc", "m4v", "mpegvideo", "obu")
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        for frame in _frames_of(container, stream):
            if len(pts) in keep:
                images[len(pts)] = to_square(frame, crop)
            pts.append(frame.pts)
            last = (frame.duration or 0) * float(stream.time_base)
        if counted or None in pts:
            return images, np.arange(len(pts)) / rate, len(pts) / rate
        ticks = np.maximum.accumulate(np.array(pts, np.int64))
        shown_s = (ticks - ticks[:1]) * float(stream.time_base)
    return images, shown_s, _duration(shown_s, last) if pts else 0.0


def _frames_of(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    for packet in [*_demux(container, stream), None]:
        try:
            yield from stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            continue


def to_square(frame: av.VideoFrame, crop: bool = True) -> np.ndarray:
    """One decoded frame as (224, 224, 3) uint8 RGB, upright, antialiased (swscale AREA)."""
    if frame.width * frame.height > MAX_PIXELS:
        raise MediaError("too_large", f"a frame of {frame.width} x {frame.height} pixels")
    width, height = fit(frame.width, frame.height, crop)
    image = frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()
    quarter_turns = round(frame.rotation / 90) % 4  # counterclockwise, as numpy's
    return np.ascontiguousarray(np.rot90(centre(image), quarter_turns))
