"""What the commands that use a run have in common: their arguments, and how the run's samples were shown. No torch."""

import argparse
import stat
import sys
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from fvlm.config.schema import Run
from fvlm.data.decode.media import IMAGE_SUFFIXES, Clip, Media, MediaError
from fvlm.data.decode.pool import decode
from fvlm.errors import UserError
from fvlm.evaluate.read import SOURCES, read_run, shown_like

if TYPE_CHECKING:
    from fvlm.evaluate.frames import Frames

QUESTION = "Say what happens in the video."  # for a run that did not save the prompts of its sources
TOKENS = 60  # longest answer, unless a command has another number


def add_run_argument(parser: argparse.ArgumentParser, **options) -> None:
    parser.add_argument(
        "--run",
        required=True,
        type=Path,
        help="folder of a finished run, for example results/runs/stage3, or of `fvlm export`",
        **options,
    )


def add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="longest answer, in tokens (default: %(default)s)")
    parser.add_argument(
        "--mode",
        default=None,
        help="coarse_only, coarse_fine or autoregressive (default: autoregressive if the run has it)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0: the most likely token each time; 1: tokens drawn as the model weighs them (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")


class FinishedRun:
    """A finished run, and how the samples that it was trained on were shown.

    folder    results/runs/NAME, or of `fvlm export`
    raises    UserError if the run is not finished
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.run, beside = read_run(folder)
        self.sources = beside[SOURCES]

    @cached_property
    def video(self) -> dict:
        return shown_like(self.sources, "video", self.run.name)

    @cached_property
    def image(self) -> dict:
        return shown_like(self.sources, "image", self.run.name)

    def like(self, file: Path) -> dict:
        return self.image if is_image(file) else self.video

    def crop(self, file: Path) -> bool:
        return self.like(file).get("crop", True)

    def prompt(self, file: Path) -> str:
        return self.like(file).get("prompt") or QUESTION

    def frames(self, file: Path, decoded: Callable[[Media], Clip] | None = None) -> "Frames":
        """Return the frames of a video, at most `data.max_frames` and evenly spaced, or the one of an image.

        decoded   returns the clip of a file; None: it is decoded in this process
        raises    MediaError if the file is no video or image that can be decoded
        """
        from fvlm.evaluate.frames import load_frames  # imports PyAV and Pillow

        media = Media(str(file), image=is_image(file))
        decoded = decoded or partial(decode, folder=Path(), crop=self.crop(file))
        return load_frames((media,), decoded, self.run.data.max_frames, self.run.data.static_frames)

    def needed_frames(self, file: Path) -> "Frames":
        """Return the frames of a file without which a command has nothing to do; raises UserError."""
        try:
            return self.frames(file)
        except MediaError as error:
            raise UserError(
                f"{file} cannot be decoded ({error.reason}: {error}); expected a video, or an image with a name that "
                "ends in .jpg, .png or the like"
            ) from error

    def answers(self, args: argparse.Namespace):
        """Return the run as `fvlm.use.answer.Answers`, with the arguments of `add_answer_arguments`."""
        from fvlm.use.answer import Answers  # imports torch, which takes seconds

        return Answers(self.folder, args.mode, args.tokens, args.temperature, args.seed)


def checked_run(args: argparse.Namespace) -> FinishedRun:
    """Return the run of `add_answer_arguments`; raises UserError for arguments that do not suit it."""
    finished = FinishedRun(args.run)
    check_mode(finished.run, args.mode)
    if args.tokens < 1:
        raise UserError(f"--tokens is {args.tokens}; expected at least 1")
    if not 0 <= args.temperature < float("inf"):
        raise UserError(f"--temperature is {args.temperature:g}; expected 0 or more")
    if not 0 <= args.seed < 2**63:
        raise UserError(f"--seed is {args.seed}; expected 0 to 2^63 - 1")
    if not finished.run.model.variant.sees:
        print(f"{finished.run.name}: this run has no encoder; it answers without the frames", file=sys.stderr)
    return finished


def check_mode(run: Run, mode: str | None) -> None:
    if mode not in (None, *run.model.modes):
        known = ", ".join(run.model.modes)
        raise UserError(f"--mode is {mode!r}; run {run.name!r} ({run.model.architecture}) has {known}")


def check_question(question: str) -> None:
    if not question.strip():
        raise UserError("a question is empty; expected words, for example 'What happens?'")


def is_image(file: Path) -> bool:
    return file.name.lower().endswith(IMAGE_SUFFIXES)


def is_stream(file: Path) -> bool:
    """Whether a file is standard input (`-`) or a camera."""
    try:
        return str(file) == "-" or stat.S_ISCHR(file.stat().st_mode)
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return False


def check_file(file: Path) -> None:
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a video or an image, or - for a video on standard input")


def check_out(path: Path) -> None:
    """Raise UserError if no file can have this name, before the work is done."""
    wrong = path if path.is_dir() else next((p for p in path.parents if p.exists() and not p.is_dir()), None)
    if wrong is not None:
        kind = "folder" if wrong == path else "file"
        raise UserError(f"{path} cannot be written: {wrong} is a {kind}; name a new file")


def check_stream(run: Run, mode: str | None) -> None:
    if (mode or run.model.variant.inference_mode) == "coarse_fine":
        raise UserError("--mode coarse_fine needs the whole video; choose autoregressive or coarse_only for a stream")
