"""Decode files in processes of their own, so that a hang or a crash costs that file only.

Each worker is a session of its own with a deadline per file: when it is late, its whole process group is
killed (an ffmpeg it started included) and the next file gets a new worker.
"""

import contextlib
import multiprocessing
import os
import queue
import resource
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from fvlm.data.media import MediaError

START_S = 120  # for a worker to start on a busy machine
ORPHAN_S = 10  # after the deadline a worker ends itself, should nobody be left to kill it
MEMORY_BYTES = 8 << 30  # address space of one worker


@dataclass(frozen=True)
class Decoded:
    """A file's frames as JPEG, with what `media.Clip` says of them."""

    jpegs: list[bytes]
    times_s: list[float]
    duration_s: float
    codec: str


def decode_to_jpegs(path: Path, kind: str, backend: str = "pyav") -> Decoded:
    """Decode and compress (quality 90, 4:2:0); raises MediaError."""
    import simplejpeg

    from fvlm.data.video import decode_image, decode_video

    clip = decode_video(path, backend) if kind == "video" else decode_image(path)
    jpegs = [simplejpeg.encode_jpeg(frame, quality=90, colorsubsampling="420") for frame in clip.frames]
    return Decoded(jpegs, [round(t, 6) for t in clip.times_s.tolist()], round(clip.duration_s, 6), clip.codec)


def _serve(connection: Connection, decode: Callable[[Path], Decoded], deadline_s: float) -> None:
    """A worker's life: a path comes in, a `Decoded` or a `MediaError` goes out."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even inside a decoder's native code
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import fvlm.data.video  # noqa: F401  (loaded before the first deadline starts)

    connection.send("ready")
    while True:
        try:
            path = connection.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, deadline_s + ORPHAN_S)
        try:
            answer: Decoded | tuple[str, str] = decode(path)
        except MediaError as error:
            answer = (error.reason, str(error))
        except MemoryError:
            answer = ("too_large", f"{path}: needs more than {MEMORY_BYTES >> 30} GiB")
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(answer)


class _Worker:
    def __init__(self, decode: Callable[[Path], Decoded], deadline_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, decode, deadline_s), daemon=True)
        self.process.start()
        theirs.close()
        self.deadline_s = deadline_s
        if not self.connection.poll(START_S):
            self.kill()
            raise RuntimeError(f"a decoding process did not start within {START_S} s")
        self.connection.recv()

    def decode(self, path: Path) -> Decoded:
        """Raises MediaError; after reason timeout or crashed the worker is dead."""
        try:
            self.connection.send(path)
            if not self.connection.poll(self.deadline_s):
                raise MediaError("timeout", f"{path}: not decoded within {self.deadline_s:g} s")
            answer = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join(10)
            raise MediaError("crashed", f"{path}: decoder ended with status {self.process.exitcode}") from error
        if isinstance(answer, tuple):
            raise MediaError(*answer)
        return answer

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # in case it had no group of its own yet
        self.process.join(10)
        self.connection.close()


class DecodePool:
    """`processes` workers that apply `decode` (a function that can be pickled) to paths.

    with DecodePool(partial(decode_to_jpegs, kind="video"), processes=4, deadline_s=60) as pool:
        future = pool.submit(path)
    """

    def __init__(self, decode: Callable[[Path], Decoded], processes: int = 1, deadline_s: float = 60) -> None:
        self._decode, self._deadline_s = decode, deadline_s
        self._threads = ThreadPoolExecutor(processes)
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(None)  # a slot whose worker has not started

    def submit(self, path: Path) -> Future[Decoded]:
        """The result, in time; its exception is a MediaError."""
        return self._threads.submit(self._run, path)

    def _run(self, path: Path) -> Decoded:
        worker = self._idle.get()
        try:
            worker = worker or _Worker(self._decode, self._deadline_s)
            return worker.decode(path)
        except MediaError as error:
            if error.reason in ("timeout", "crashed"):
                worker.kill()
                worker = None
            raise
        finally:
            self._idle.put(worker)

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            worker = self._idle.get()
            if worker is not None:
                worker.kill()
