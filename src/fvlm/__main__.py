"""Command line: `python -m fvlm COMMAND ...`, or `fvlm COMMAND ...`.

A command lives in one module that offers `add_arguments(parser)` and `main(args)`. Only the requested command's module
is imported, so that `fvlm plan` starts without torch.
"""

import argparse
import difflib
import errno
import gc
import importlib
import os
import select
import signal
import sys
from contextlib import suppress
from typing import NoReturn, TextIO

from fvlm import __version__
from fvlm.errors import Stopped, UserError

# Errors of the disk that can end any command that writes.
DISK = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EACCES)

GROUPS = {
    "your data": {
        "shard": ("fvlm.data.shards.command", "decode a folder of videos or images into WebDataset shards"),
        "data-report": ("fvlm.data_report.command", "write a page about the data: counts, lengths, duplicates"),
    },
    "train": {
        "train": ("fvlm.train.command", "train one run, or resume it from its last checkpoint"),
        "adopt": ("fvlm.study.adopt", "take a finished run of the published study, or of weights, into a study"),
    },
    "use": {
        "caption": ("fvlm.use.caption", "caption videos and images"),
        "ask": ("fvlm.use.ask", "ask a model about a video, an image or a stream"),
        "chat": ("fvlm.use.chat", "talk with a model about a video, an image or a stream"),
        "look": ("fvlm.use.look", "write a page that shows where a model looks in a video while it answers"),
        "export": ("fvlm.use.export", "write a finished run as a folder that transformers loads without this project"),
    },
    "plan and watch": {
        "plan": ("fvlm.study.plan", "list every run: parameters, samples, tokens, FLOPs, memory, hours, cost"),
        "calibrate": ("fvlm.study.calibrate", "time a few training steps of each model here, to plan hours from"),
        "preflight": ("fvlm.study.preflight", "try everything a study needs, in minutes and without training"),
        "status": ("fvlm.study.status", "show each run's step, loss, speed, time left, checkpoint and cost"),
    },
    "analyse": {
        "fit": ("fvlm.analysis.fits.joint", "fit L(N, D) = E + A/N^alpha + B/D^beta to points"),
        "powerlaw": ("fvlm.analysis.fits.powerlaw", "fit L(C) = A C^-alpha + L_inf, or L(D), to points or a run"),
        "isoflop": ("fvlm.analysis.fits.isoflop", "find the best model size at each budget, and its exponent in C"),
        "envelope": ("fvlm.analysis.fits.envelope", "find the best model size from whole training curves"),
        "gap": ("fvlm.analysis.compare.gap", "compare two architectures, raw and at equal parameters"),
        "factorial": ("fvlm.analysis.compare.factorial", "estimate both main effects and the interaction of a 2 x 2"),
        "rank": ("fvlm.analysis.compare.ranking", "rank runs against a baseline, best and final loss, ties grouped"),
        "check-curves": ("fvlm.analysis.fits.curves", "find jumps of the loss that several runs share"),
        "import": ("fvlm.analysis.imported", "make a study's tables from finished results"),
    },
    "called by the workflow": {
        "corpus": ("fvlm.data.demo.corpus", "make the demo corpus: videos, images, texts, preference pairs"),
        "tokenizer": ("fvlm.data.shards.text", "train the demo's byte-level BPE tokenizer, or copy a pretrained one"),
        "index": ("fvlm.data.shards.index", "index a source's shards: byte offsets, frame counts, text lengths"),
        "ledger": ("fvlm.data.shards.ledger", "add up the ledgers of all shards"),
        "evaluate": ("fvlm.evaluate.command", "compute a finished run's held-out losses, by source and mode"),
        "benchmark": ("fvlm.use.benchmark", "let a finished run answer a benchmark; score its answers"),
        "attention": ("fvlm.evaluate.attention", "save a finished run's attention maps on fixed held-out videos"),
        "collect": ("fvlm.analysis.collect", "gather finished runs into one table"),
        "table": ("fvlm.analysis.tables", "make one table from the collected ones"),
        "figure": ("fvlm.analysis.figure_command", "draw one figure"),
        "front-page": ("fvlm.analysis.front", "write the page that a reader of a study opens first"),
        "decisions": ("fvlm.analysis.decisions.page", "write the page of what each sweep decides"),
    },
}
COMMANDS = {name: entry for commands in GROUPS.values() for name, entry in commands.items()}


class Parser(argparse.ArgumentParser):
    """Prints usage errors in one line; `--help` shows the arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} ({self.prog} --help shows the arguments)\n")


def overview() -> str:
    """All commands by group, for `fvlm --help`."""
    width = max(map(len, COMMANDS))
    lines = ["usage: fvlm COMMAND ...", "", "From raw videos to a foveated vision-language model and its figures."]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<{width}}  {text}" for name, (_, text) in commands.items())]
    return "\n".join([*lines, "", "fvlm COMMAND --help shows a command's arguments, fvlm --version the version."])


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    2 for an error that the user can correct, 130 after Ctrl-C, 75 if a signal stopped a training that should be
    started again.
    """
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name in ("-V", "--version"):
        print(f"fvlm {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"fvlm: {_unknown(name)} (fvlm --help lists the commands)", file=sys.stderr)
        return 2
    return _run(name, argv[1:])


def _unknown(name: str) -> str:
    if not name:
        return "a command is missing"
    nearest = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"unknown command {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else "")


def _run(name: str, arguments: list[str]) -> int:
    path, description = COMMANDS[name]
    gc.disable()  # imports make no garbage, and collecting it takes a sixth of their time
    module = importlib.import_module(path)
    gc.freeze()
    gc.enable()
    parser = Parser(prog=f"fvlm {name}", description=description)
    module.add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        return module.main(args) or 0
    except UserError as error:
        print(f"fvlm {name}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        with suppress(BrokenPipeError):  # the same signal may have stopped the reader
            print(f"fvlm {name}: stopped {stopped}; the same command resumes from there", file=sys.stderr, flush=True)
        return stopped.status
    except BrokenPipeError:
        if not _reader_is_gone(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python itself reports an error at exit
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in DISK:
            raise
        path = error.filename2 or error.filename or "the output"
        print(
            f"fvlm {name}: {path} cannot be written ({error.strerror}); free disk space or make it writable. Finished "
            "files stay, and the same command resumes from there",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"fvlm {name}: stopped; finished files stay, and the same command resumes from there", file=sys.stderr)
        return 130


def _reader_is_gone(stream: TextIO) -> bool:
    """Return whether the other end of a pipe is closed, as after `| head`."""
    poll = select.poll()
    poll.register(stream, 0)  # poll reports errors even without an event mask
    return bool(poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
