"""Work in a process whose memory is limited."""

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from fvlm.data.decode.media import MediaError
from fvlm.errors import UserError

GIB = 1 << 30


def within(memory: int, work: Callable, *arguments: object, **options: object) -> str:
    """What `work` returned or raised in a process that may take so many bytes more than it has.

    It is no fork of this one, whose threads may hold locks that nobody would ever open there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.limited", "fvlm.data.decode.video", "fvlm.data.readers", "fvlm.model.build"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_limited, args=(there, memory, work, arguments, options))
    process.start()
    there.close()
    try:
        assert here.poll(120), "no answer after two minutes"
        said = here.recv()
    except EOFError:
        said = ""
    finally:
        process.kill()
        process.join()
    assert said, f"ended with status {process.exitcode}"
    return said


def _limited(answer: Connection, memory: int, work: Callable, arguments: tuple, options: dict) -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
    try:
        said = repr(work(*arguments, **options))
    except (MediaError, UserError, MemoryError, OSError, ValueError) as error:
        said = f"{type(error).__name__} {getattr(error, 'reason', '')} {error}"
    answer.send(said[:4000])
