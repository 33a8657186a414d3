"""Decode files in worker processes, so that a hang or a crash costs only that file.

Each worker is the leader of its own session and has a deadline per file. A late worker is killed with its process group
(including an ffmpeg that it started), and the next file gets a new worker.
"""

import contextlib
import multiprocessing
import os
import queue
import re
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.connection import Connection, wait
from pathlib import Path

from fvlm.data.decode.media import Clip, Media, MediaError, check_regular
from fvlm.data.readers.row import in_any_form
from fvlm.errors import UserError

START_S = 120  # seconds for a worker to start on a busy machine
ORPHAN_S = 10  # seconds after the deadline until a worker ends itself, in case its parent process was killed
MEMORY_BYTES = 8 << 30  # address space of one worker


@dataclass(frozen=True)
class Decoded:
    """A `media.Clip` with its frames as JPEG."""

    jpegs: list[bytes]
    times_s: list[float]
    duration_s: float
    codec: str


def decode_to_jpegs(media: Media, folder: Path, backend: str = "pyav", crop: bool = True) -> Decoded:
    """Decode a file and compress its frames (quality 90, 4:2:0).

    folder      the folder that relative names of `media` start from
    raises      MediaError; its message names `media.file`, even if the bytes are elsewhere
    """
    import simplejpeg

    clip = decode(media, folder, backend, crop)
    jpegs = [simplejpeg.encode_jpeg(frame, quality=90, colorsubsampling="420") for frame in clip.frames]
    return Decoded(jpegs, [round(t, 6) for t in clip.times_s.tolist()], round(clip.duration_s, 6), clip.codec)


def decode(media: Media, folder: Path, backend: str = "pyav", crop: bool = True) -> Clip:
    """Return the frames of a file in this process; arguments and errors as in `decode_to_jpegs`."""
    from fvlm.data.decode.video import decode_image, decode_video

    content = media.content if media.inside is None else _read_inside(media, folder)
    if content is not None and not content:
        raise MediaError("empty", f"{media.file}: 0 bytes")
    if media.image and content is not None:
        return decode_image(BytesIO(content), crop, name=media.file)
    with _on_disk(media, folder, content) as path:
        try:
            return decode_image(path, crop) if media.image else decode_video(path, backend, crop, media.span_s)
        except MediaError as error:
            message = str(error).replace(str(path.absolute()), media.file).replace(str(path), media.file)
            raise MediaError(error.reason, message if media.file in message else f"{media.file}: {message}") from error


def _read_inside(media: Media, folder: Path) -> bytes:
    """Return the bytes of a member of a tar."""
    path, stop = folder / media.inside, media.offset + media.size
    try:
        check_regular(path)
        size = path.stat().st_size
        if not 0 <= media.offset <= stop <= size:
            raise MediaError("corrupt", f"{path}: no bytes {media.offset} to {stop}, the file has {size}")
        with path.open("rb") as tar:
            tar.seek(media.offset)
            return tar.read(media.size)
    except MediaError as error:
        raise MediaError(error.reason, f"{media.file}: {str(error).replace(str(path), media.inside)}") from error
    except OSError as error:
        raise MediaError("missing", f"{media.file}: {media.inside}: {error.strerror}") from error


@contextlib.contextmanager
def _on_disk(media: Media, folder: Path, content: bytes | None) -> Iterator[Path]:
    """The path of the file, or of a temporary copy of its bytes, because two of the decoders need a path."""
    if content is None:
        yield in_any_form(folder, media.file)
        return
    suffix = re.search(r"\.[A-Za-z0-9]{1,5}$", media.file)  # FFmpeg uses it to recognise the format
    try:
        handle, name = tempfile.mkstemp(suffix[0] if suffix else "")
        with open(handle, "wb") as file:
            file.write(content)
    except OSError as error:
        raise UserError(
            f"{tempfile.gettempdir()}: {error.strerror}; videos in tables or tars are unpacked there before decoding: "
            "free some space, or set TMPDIR to another folder"
        ) from error
    try:
        yield Path(name)
    finally:
        os.unlink(name)


def _serve(connection: Connection, decode: Callable[[Media], Decoded], deadline_s: float, scratch: str) -> None:
    """Main loop of a worker: receive a `Media`, send a `Decoded` or (reason, message); a `UserError` has reason ""."""
    tempfile.tempdir = os.environ["TMPDIR"] = scratch
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even inside a decoder's native code
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import fvlm.data.decode.video  # noqa: F401  (loaded before the first deadline starts)

    connection.send("ready")
    with contextlib.suppress(EOFError, ConnectionError):  # the parent process has ended
        while True:
            media = connection.recv()
            signal.setitimer(signal.ITIMER_REAL, deadline_s + ORPHAN_S)
            try:
                answer: Decoded | tuple[str, str] = decode(media)
            except MediaError as error:
                answer = (error.reason, str(error))
            except UserError as error:  # a problem of the machine or the settings, not of the file
                answer = ("", str(error))
            except MemoryError:
                answer = ("too_large", f"{media.file}: needs more memory than {limit >> 20} MiB")
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(answer)
    shutil.rmtree(scratch, ignore_errors=True)


class _Worker:
    """A process that decodes one file at a time. When `stop` can be read, nothing is waited for any more."""

    def __init__(self, decode: Callable[[Media], Decoded], deadline_s: float, stop: Connection) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.scratch = tempfile.mkdtemp(prefix="fvlm-decode-")
        arguments = (theirs, decode, deadline_s, self.scratch)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.deadline_s, self.stop = deadline_s, stop
        try:
            started = self._answers(START_S) and self.connection.recv()
        except (EOFError, ConnectionError):
            started = False
        if not started:
            self.kill()
            raise UserError(
                f"a decoding process ended, or hung for {START_S} s, while it started; perhaps memory is low: use "
                "fewer --processes"
            )

    def decode(self, media: Media) -> Decoded:
        """Return the decoded file; raises MediaError. After reasons timeout and crashed the worker must be killed."""
        try:
            self.connection.send(media)
            if not self._answers(self.deadline_s):
                raise MediaError("timeout", f"{media.file}: not decoded within {self.deadline_s:g} s")
            answer = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join(10)
            raise MediaError("crashed", f"{media.file}: decoder ended with status {self.process.exitcode}") from error
        if isinstance(answer, tuple):
            reason, message = answer
            raise MediaError(reason, message) if reason else UserError(message)
        return answer

    def _answers(self, within_s: float) -> bool:
        return self.connection in wait([self.connection, self.stop], within_s)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # in case it has no process group yet
        self.process.join(10)
        self.connection.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


class DecodePool:
    """A pool of `processes` workers that apply `decode` (a function that can be pickled) to media.

    with DecodePool(partial(decode_to_jpegs, folder=folder), processes=4, deadline_s=60) as pool:
        future = pool.submit(media)
    """

    def __init__(self, decode: Callable[[Media], Decoded], processes: int = 1, deadline_s: float = 60) -> None:
        self._decode, self._deadline_s = decode, deadline_s
        self._threads = ThreadPoolExecutor(processes)
        self._stop, self._stopping = multiprocessing.Pipe(duplex=False)
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(None)  # None: a worker that has not started

    def submit(self, media: Media) -> Future[Decoded]:
        """Return a future; its exception is a MediaError of this file, or a UserError that concerns all files."""
        return self._threads.submit(self._run, media)

    def _run(self, media: Media) -> Decoded:
        try:
            return self._decoded(media)
        except MediaError as error:
            if error.reason != "crashed":
                raise
        return self._decoded(media)  # second try: the worker may have been killed because memory was low

    def _decoded(self, media: Media) -> Decoded:
        worker = self._idle.get()
        try:
            worker = worker or _Worker(self._decode, self._deadline_s, self._stop)
            return worker.decode(media)
        except MediaError as error:
            if error.reason in ("timeout", "crashed"):
                worker.kill()
                worker = None
            raise
        finally:
            self._idle.put(worker)

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:  # as after Ctrl-C: files that are being decoded are given up
            self._stopping.send(None)
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            worker = self._idle.get()
            if worker is not None:
                worker.kill()
