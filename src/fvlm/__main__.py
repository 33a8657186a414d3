"""Command line: `python -m fvlm COMMAND ...`, or `fvlm COMMAND ...`.

Each command lives in one module that offers `add_arguments(parser)` and `main(args)`; only the module of
the command that was asked for is imported, so that `fvlm plan` starts without torch.
"""

import argparse
import errno
import gc
import importlib
import os
import select
import signal
import sys
from contextlib import suppress
from typing import NoReturn, TextIO

from fvlm.errors import Stopped, UserError

# What a disk can do to any command that writes.
DISK = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EACCES)

COMMANDS = {
    "plan": ("fvlm.study.plan", "print every run: parameters, samples, tokens, FLOPs, memory, hours, cost"),
    "calibrate": ("fvlm.study.calibrate", "time a few steps of each model on this machine, for the plan"),
    "corpus": ("fvlm.data.demo.corpus", "make the demo corpus: videos, images, texts, preference pairs"),
    "tokenizer": ("fvlm.data.shards.text", "train the demo's byte-level BPE tokenizer, or copy a pretrained one"),
    "shard": ("fvlm.data.shards.command", "decode one slice of a source into one WebDataset shard and its ledger"),
    "index": ("fvlm.data.shards.index", "index a source's shards: byte offsets, frame counts, text lengths"),
    "ledger": ("fvlm.data.shards.ledger", "add up the ledgers of all shards"),
    "data-report": ("fvlm.data_report.command", "a page about the data: counts, lengths, samples, near-duplicates"),
    "preflight": ("fvlm.study.preflight", "try everything that a study needs, in minutes and without training"),
    "status": ("fvlm.study.status", "where every run is: step, loss, speed, time left, checkpoint, cost"),
    "train": ("fvlm.train.command", "train one run, or continue it from its last checkpoint"),
    "evaluate": ("fvlm.evaluate.losses", "held-out losses of a finished run, by source and mode"),
    "attention": ("fvlm.evaluate.attention", "attention maps of a finished run on fixed held-out videos"),
    "caption": (
        "fvlm.evaluate.caption",
        "let a finished run describe a video, or answer a question about it",
    ),
    "collect": ("fvlm.analysis.collect", "gather finished runs into one table"),
    "import": ("fvlm.analysis.import_results", "finished results from elsewhere as such tables"),
    "table": ("fvlm.analysis.tables", "make one table from the collected ones"),
    "figure": ("fvlm.analysis.figures", "draw one figure"),
    "decisions": ("fvlm.analysis.decisions.page", "a page of what the sweeps decide, made from its table"),
    "gap": ("fvlm.analysis.compare.gap", "the gap between two architectures, raw and at equal parameters"),
    "factorial": ("fvlm.analysis.compare.factorial", "main effects and interaction of query depth and fine pass"),
    "rank": ("fvlm.analysis.compare.ranking", "runs ranked against a baseline, best and final, ties grouped"),
    "check-curves": ("fvlm.analysis.fits.curves", "jumps of the loss that several runs share"),
    "fit": ("fvlm.analysis.fits.joint", "fit L(N, D) = E + A/N^alpha + B/D^beta to points"),
    "powerlaw": ("fvlm.analysis.fits.powerlaw", "fit L(C) = A C^-alpha + L_inf, or L(D), to points or to one run"),
    "isoflop": ("fvlm.analysis.fits.isoflop", "the best model size at each budget, and its exponent in C"),
    "envelope": ("fvlm.analysis.fits.envelope", "the best model size along the lower envelope of training curves"),
}


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one sentence; what a command takes is told by --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} ({self.prog} --help tells what it takes)\n")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status: 2 for a mistake the user can mend, 130 after Ctrl-C, 75 where a signal
    stopped a training that is to be started again."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="fvlm", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, text) in COMMANDS.items():
        commands.add_parser(name, help=text, description=text, add_help=name not in argv[:1])
    if not argv or argv[0] not in COMMANDS:
        parser.parse_args(argv)
        return 0
    name = argv[0]
    gc.disable()  # nothing that an import makes is garbage, and looking for it takes a sixth of the time
    module = importlib.import_module(COMMANDS[name][0])
    gc.freeze()
    gc.enable()
    command = Parser(prog=f"fvlm {name}", description=COMMANDS[name][1])
    module.add_arguments(command)
    args = command.parse_args(argv[1:])
    try:
        return module.main(args) or 0
    except UserError as error:
        print(f"fvlm {name}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        with suppress(BrokenPipeError):  # who reads this may have been stopped by the same signal
            print(f"fvlm {name}: stopped {stopped}; the same command goes on from there", file=sys.stderr, flush=True)
        return stopped.status
    except BrokenPipeError:
        if not _reader_is_gone(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python itself complains at its end
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = error.filename2 or error.filename or "the output"
        print(
            f"fvlm {name}: {where} cannot be written ({error.strerror}); make room or make it writable: what is "
            "finished stays, and the same command goes on from there",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"fvlm {name}: stopped; what is finished stays, and the same command goes on from there", file=sys.stderr)
        return 130


def _reader_is_gone(stream: TextIO) -> bool:
    """Whether a pipe leads nowhere, as after `| head`."""
    asked = select.poll()
    asked.register(stream, 0)  # errors are always told
    return bool(asked.poll(0))


if __name__ == "__main__":
    sys.exit(main())
