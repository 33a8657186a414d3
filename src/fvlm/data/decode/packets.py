"""Open a video and read its packets: when each frame is shown, and which frames can be skipped. Decodes nothing."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from fvlm.data.decode.bitstream import StreamFacts
from fvlm.data.decode.media import MAX_PIXELS, MediaError

# Containers that hold their own content. Playlists and concat scripts, which name other files, are refused.
FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,ivf,nut,mxf,dv,rm,h264,hevc,m4v,obu,"
    "mjpeg,jpeg_pipe,smjpeg,yuv4mpegpipe,vvc,evc,h263,h261,vc1,vc1test,dirac,cavsvideo,avs2,avs3,dnxhd,apv,"
    "mp3,aac,wav,flac"  # sound: allowed so that the reason is `no_video_stream`
)
# Streams of a codec alone, without times: frames follow at the stream's rate.
NO_TIMES = (
    *("h264", "hevc", "vvc", "evc", "m4v", "mpegvideo", "obu", "mjpeg", "jpeg_pipe", "h263", "h261", "vc1", "dirac"),
    *("cavsvideo", "avs2", "avs3", "dnxhd", "apv"),
)
LIMIT = {"max_pixels": str(MAX_PIXELS)}  # a decoder refuses a larger picture before it allocates memory
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS, **LIMIT}
# Containers and codecs in which each packet is one frame and carries its time.
PLANNED = {
    "mov": {"h264", "hevc", "vp9", "av1", "libdav1d", "mpeg4", "mjpeg", "prores", "dnxhd", "png"},
    "matroska": {"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "mjpeg", "prores", "png"},
    "avi": {"mjpeg", "mpeg4"},
    "flv": {"h264"},
}
HELD_BYTES = 256 << 20  # packets of a larger file are read a second time instead of kept in memory
NO_PTS = -(1 << 62)


@dataclass(frozen=True)
class Packets:
    """All packets of a video stream in decoding order.

    pts         (P,) int64, presentation times in units of `unit_s`; NO_PTS where a packet has none
    keyframe    (P,) bool
    shown       (P,) bool, False: only other frames need it (before the start of an edit list, hidden VP8 frames)
    lengths     (P,) int64, durations in units of `unit_s`, 0 where unknown
    unit_s      seconds per unit
    plannable   True if each packet is one frame at a known, unique time, and the keyframes are true ones
    skip        True if the decoder may skip the frames that it considers unreferenced
    aspect      width of a stored pixel divided by its height, as the container states it; None: it does not
    stream      index of the stream
    held        the packets, or None for a large file
    codec, format   FFmpeg's names
    """

    pts: np.ndarray
    keyframe: np.ndarray
    shown: np.ndarray
    lengths: np.ndarray
    unit_s: float
    plannable: bool
    skip: bool
    aspect: float | None
    held: list[av.Packet] | None
    stream: int
    codec: str
    format: str

    @property
    def in_order(self) -> bool:
        """Whether the packets' times ascend, so that no frame is shown before one that it follows in the file."""
        return bool((np.diff(self.pts) > 0).all())

    def timeline(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Indices of the shown packets by presentation time (F,), these times (F,) in seconds, and the duration."""
        order = np.argsort(self.pts, kind="stable")
        order = order[self.shown[order]]
        shown_s = (self.pts[order] - self.pts[order[0]]) * self.unit_s
        return order, shown_s, duration_of(shown_s, self.lengths[order[-1]] * self.unit_s)


def open_video(path: Path, stream_index: int | None = None, probe: bool = True) -> tuple[InputContainer, VideoStream]:
    """Open a file and choose its video stream; its decoder gets one thread.

    stream_index    the stream chosen at an earlier opening
    probe           False: decode no frame while opening. The decoder then does not know how far frames are reordered
                    and may lose some, so the caller must check the decoded frames
    raises          MediaError not_media, no_video_stream, too_large, corrupt (a known format that does not open)
    """
    try:
        # Absolute, because FFmpeg reads the part of a relative name before a colon as a protocol.
        options = OPTIONS if probe else {**OPTIONS, "skip_frame": "all"}
        container = av.open(str(path.absolute()), options=options, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        reason = "corrupt" if _looks_like_video(path) else "not_media"
        message = getattr(error, "strerror", None) or error  # the error's full text also holds the absolute path
        raise MediaError(reason, f"{path}: {message}") from error
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        container.close()
        raise MediaError("no_video_stream", f"{path}: {len(container.streams)} streams, none is video")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream_index is not None:
        stream = container.streams[stream_index]
    context = stream.codec_context
    if context is None or context.codec is None:
        container.close()
        raise MediaError("corrupt", f"{path}: no decoder for its video stream")
    if context.width * context.height > MAX_PIXELS:
        container.close()
        raise MediaError("too_large", f"{path}: {context.width} x {context.height} pixels")
    context.thread_count = 1
    context.options = LIMIT
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    return container, stream


def refused_size(path: Path, stream_index: int) -> str | None:
    """The decoder's error message about the picture size, or None if it has no such error in the first packets."""
    container, stream = open_video(path, stream_index)
    before = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with container, av.logging.Capture() as messages:
            for packet in islice(demux(container, stream), 3):
                with contextlib.suppress(av.error.FFmpegError):
                    stream.codec_context.decode(packet)
    finally:
        av.logging.set_level(before[0])
        av.logging.set_skip_repeated(before[1])
    return next((text.strip() for _, _, text in messages if text.startswith("Picture size")), None)


def _looks_like_video(path: Path) -> bool:
    head = _head(path)
    return describes_itself(path) or head[4:8] == b"mdat" or head[:4] in (b"RIFF", b"FLV\x01")


def describes_itself(path: Path) -> bool:
    """Return whether a file is MP4, MOV, Matroska or WebM, whose headers describe the streams."""
    head = _head(path)
    return head[4:8] in (b"ftyp", b"moov") or head[:4] == b"\x1aE\xdf\xa3"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def demux(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """All packets with content, up to the first damage."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        if packet.size:
            yield packet


def read_packets(path: Path, container: InputContainer, stream: VideoStream) -> Packets:
    """Read all packets of a stream.

    raises      MediaError corrupt if the stream has no packet
    """
    codec, form = stream.codec_context.name, container.format.name.split(",")[0]
    facts = StreamFacts(codec, bytes(stream.codec_context.extradata or b""))
    held: list[av.Packet] | None = [] if path.stat().st_size <= HELD_BYTES else None
    pts, keyframe, shown, lengths, damaged = [], [], [], [], False
    for packet in demux(container, stream):
        time = packet.dts if form == "avi" else packet.pts  # AVI stores no times; FFmpeg numbers its packets
        pts.append(NO_PTS if time is None else time)
        keyframe.append(packet.is_keyframe)
        shown.append(facts.add(packet) and not packet.is_discard)
        lengths.append(packet.duration or 0)
        damaged = damaged or packet.is_corrupt
        if held is not None:
            held.append(packet)
    if not pts:
        raise MediaError("corrupt", f"{path}: no packet in its video stream")
    refuse_picture(path, form, len(pts))
    times = np.array(pts, np.int64)
    visible = times[np.array(shown, bool)]
    plannable = codec in PLANNED.get(form, ()) and not damaged and facts.true_keys and keyframe[0]
    plannable = plannable and bool((times != NO_PTS).all()) and (form != "avi" or facts.one_frame_each)
    return Packets(
        pts=times,
        keyframe=np.array(keyframe, bool),
        shown=np.array(shown, bool),
        lengths=np.array(lengths, np.int64),
        unit_s=float(stream.time_base),
        plannable=plannable and 0 < len(visible) == len(np.unique(visible)),
        skip=facts.may_skip(),
        aspect=float(stream.sample_aspect_ratio or 0) or None,
        held=held,
        stream=stream.index,
        codec=codec,
        format=form,
    )


def refuse_picture(path: Path, form: str, frames: int) -> None:
    """Raise MediaError not_media for a JPEG picture, which FFmpeg opens as a stream of one."""
    if form == "jpeg_pipe" and frames == 1:
        raise MediaError("not_media", f"{path}: a JPEG picture, expected a video")


def duration_of(shown_s: np.ndarray, last_s: float) -> float:
    """Duration in seconds. The last frame lasts `last_s`; if that is 0, the median step; if there is none, 1/25 s."""
    if last_s <= 0:
        last_s = float(np.median(np.diff(shown_s))) if len(shown_s) > 1 else 0.04
    return float(shown_s[-1]) + last_s


def runs_of(wanted: Iterable[int], pts: np.ndarray, keyframe: np.ndarray) -> list[tuple[int, int]]:
    """Ranges [start, stop) of packets to decode for the wanted packets; each starts at a keyframe.

    A frame that is shown before the keyframe it follows in the file (open group of pictures) refers to the group
    before, so its range starts at an earlier keyframe.
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
