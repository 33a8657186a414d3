"""Calls in a process with limited memory."""

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from fvlm.data.decode.media import MediaError
from fvlm.errors import UserError

GIB = 1 << 30


def within(memory: int, work: Callable, *arguments: object, **options: object) -> str:
    """Return the repr of what `work` returns, or the type and message of its error, in a process with limited memory.

    memory      bytes that the process may allocate; a fork of this process could inherit locked locks, so it is none
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.limited", "fvlm.data.decode.video", "fvlm.data.readers", "fvlm.model.build"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_limited, args=(sender, memory, work, arguments, options))
    process.start()
    sender.close()
    try:
        assert receiver.poll(120), "no answer after two minutes"
        answer = receiver.recv()
    except EOFError:
        answer = ""
    finally:
        process.kill()
        process.join()
    assert answer, f"ended with status {process.exitcode}"
    return answer


def _limited(sender: Connection, memory: int, work: Callable, arguments: tuple, options: dict) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    try:
        answer = repr(work(*arguments, **options))
    except (MediaError, UserError, MemoryError, OSError, ValueError) as error:
        answer = f"{type(error).__name__} {getattr(error, 'reason', '')} {error}"
    sender.send(answer[:4000])
