"""Frames of a stream without an end: a video on standard input, or a camera.

`fvlm.data.decode` plans which packets of a file it decodes. A stream has no plan: every frame is decoded as it comes.
"""

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from fvlm.data.decode.media import MediaError
from fvlm.data.decode.packets import FORMATS, LIMIT, NO_TIMES
from fvlm.data.decode.pyav import BACK_S, FORWARD_S, frames_of, pixel_aspect, to_square
from fvlm.errors import UserError, first_line

# Pictures one after the other, which have no times: each one is a frame. By their first bytes.
PICTURES = {b"\xff\xd8\xff": "jpeg_pipe", b"\x89PNG": "png_pipe"}
# fpsprobesize: FFmpeg does not wait for more frames to guess their rate
OPTIONS = {"format_whitelist": f"{FORMATS},png_pipe", "fpsprobesize": "0", **LIMIT}
UNREADABLE = (
    "no video that can be read as it comes; expected Matroska, MPEG-TS, NUT, fragmented MP4 or pictures, for example: "
    "ffmpeg -i IN -f matroska - |"
)
WAITING = 8  # frames and questions that wait for the model; a stream that is faster waits
SLACK_S = 1e-6  # for rounding errors of times


def open_stream(source: Path, crop: bool) -> Iterator[np.ndarray]:
    """Return the frames (224, 224, 3) uint8 of a stream, one per second of presentation time, as they come.

    source      `-`: a video or pictures on standard input; else the device of a camera
    crop        the centre of each frame; False: the whole frame squashed to a square
    raises      UserError if standard input is empty or a terminal, or if it holds no video
    """
    container = _standard_input() if str(source) == "-" else _camera(source)
    streams = container.streams.video
    if not streams or streams[0].codec_context is None:
        raise UserError(f"{source}: there is no video in this stream; expected one")
    streams[0].codec_context.options = LIMIT
    return _frames(container, streams[0], crop)


def as_they_come(source: Path, crop: bool) -> Iterator[np.ndarray]:
    """Yield the frames of `open_stream`, read in a thread: Ctrl-C then reaches the caller, and never FFmpeg."""
    events: queue.Queue = queue.Queue(WAITING)
    start_filling(events, "frame", lambda: open_stream(source, crop))
    while (content := events.get()[1]) is not None:
        if isinstance(content, Exception):
            raise content
        yield content


def start_filling(events: queue.Queue, kind: str, open_source: Callable[[], Iterable]) -> None:
    """Start a thread that puts (kind, content) of all that a source yields into a queue, then None or its error."""

    def fill() -> None:
        try:
            for content in open_source():
                events.put((kind, content))
            events.put((kind, None))
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            events.put((kind, error))

    threading.Thread(target=fill, daemon=True).start()


def _standard_input() -> InputContainer:
    file = sys.stdin.buffer
    if sys.stdin.isatty():
        raise UserError("standard input is a terminal; expected a video, for example: ffmpeg -i IN -f matroska - |")
    source = file if file.seekable() else Pipe(file.fileno())
    start = source.peek(4)
    if not start:
        raise UserError("standard input is empty; expected a video, for example: ffmpeg -i IN -f matroska - |")
    pictures = next((form for magic, form in PICTURES.items() if start.startswith(magic)), None)
    options = OPTIONS | ({"probesize": "32"} if pictures else {})  # or FFmpeg reads 5 MB before the first picture
    try:
        return av.open(source, format=pictures, options=options, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(f"standard input is {UNREADABLE} ({first_line(error)})") from error


class Pipe:
    """A pipe that gives what is there. A buffered file would wait until it has all bytes that FFmpeg asks for.

    It would also be locked while a thread waits for it, and Python could not end.
    """

    def __init__(self, descriptor: int):
        self.descriptor, self.start = descriptor, b""

    def peek(self, size: int) -> bytes:
        """Return the first bytes, at least so many if there are; they are read again."""
        while len(self.start) < size and (more := os.read(self.descriptor, 1 << 16)):
            self.start += more
        return self.start

    def read(self, size: int) -> bytes:
        if not self.start:
            return os.read(self.descriptor, size)
        part, self.start = self.start[:size], self.start[size:]
        return part


def _camera(device: Path) -> InputContainer:
    try:
        return av.open(str(device), format="video4linux2")
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(f"{device}: this camera cannot be opened ({first_line(error)})") from error


def _frames(container: InputContainer, stream: VideoStream, crop: bool) -> Iterator[np.ndarray]:
    """Yield the frame shown at each full second; a MediaError ends the stream with one sentence."""
    aspect = float(stream.sample_aspect_ratio or 0) or None
    pictures = container.format.name in PICTURES.values()
    clock = Clock(float(stream.time_base), float(stream.average_rate or 25), container.format.name in NO_TIMES)
    before, count = None, 0

    def square(frame: av.VideoFrame) -> np.ndarray:
        try:
            return to_square(frame, crop, pixel_aspect(aspect, stream.codec_context))
        except MediaError as error:
            raise UserError(f"a frame of the stream cannot be used: {error}") from error

    with container:
        for frame in frames_of(container, stream):
            if pictures:
                count += 1
                yield square(frame)
                continue
            now_s = clock.time_of(frame)
            while count < now_s - SLACK_S:
                yield square(before)
                count += 1
            if abs(count - now_s) <= SLACK_S:
                yield square(frame)
                count += 1
            before = frame
        while before is not None and count < clock.end_s - SLACK_S:
            yield square(before)
            count += 1
    if not count:
        raise UserError(f"the stream is {UNREADABLE} (no frame could be decoded)")


class Clock:
    """Seconds after the first frame. Where a source's clock jumps, the next frame follows the last one at once.

    unit_s      seconds per tick
    rate        frames per second, for frames without a time
    counts      no frame has a time
    """

    def __init__(self, unit_s: float, rate: float, counts: bool):
        self.unit_s, self.step_s, self.counts = unit_s, 1 / rate, counts
        self.start_s: float | None = None
        self.end_s = 0.0  # end of the last frame

    def time_of(self, frame: av.VideoFrame) -> float:
        length_s = (frame.duration or 0) * self.unit_s or self.step_s
        if self.counts or frame.pts is None:
            now_s, length_s = self.end_s, self.step_s
        else:
            read_s = frame.pts * self.unit_s
            if self.start_s is None:
                self.start_s = read_s
            now_s = read_s - self.start_s
            if not -BACK_S <= now_s - self.end_s <= FORWARD_S:  # another clock
                self.start_s, now_s = read_s - self.end_s, self.end_s
        self.end_s = max(self.end_s, now_s + length_s)
        return now_s
