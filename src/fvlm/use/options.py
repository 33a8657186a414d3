"""What the commands that use a run have in common: their arguments, and how the run's samples were shown. No torch."""

import argparse
import stat
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from fvlm.config.schema import Run
from fvlm.data.decode.media import IMAGE_SUFFIXES, Clip, MediaError
from fvlm.errors import UserError
from fvlm.evaluate.read import SOURCES, read_run

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


class Shown:
    """A finished run, and how the samples that it was trained on were shown.

    folder    results/runs/NAME, or of `fvlm export`
    raises    UserError if the run is not finished
    """

    def __init__(self, folder: Path):
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

    def positions(self, file: Path) -> int | None:
        """Number of visual positions that an image fills; None for a video."""
        return self.run.data.static_frames if is_image(file) else None

    def clip(self, file: Path) -> Clip:
        """Return the frames of a video, at most `data.max_frames` and evenly spaced, or the one of an image.

        raises    MediaError if the file is no video or image that can be decoded
        """
        from fvlm.data.decode.video import decode_image, decode_video  # import PyAV and Pillow
        from fvlm.data.shards.samples import evenly_spaced

        clip = decode_image(file, self.crop(file)) if is_image(file) else decode_video(file, crop=self.crop(file))
        chosen = evenly_spaced(len(clip.frames), self.run.data.max_frames)
        return replace(clip, frames=clip.frames[chosen], times_s=clip.times_s[chosen])

    def decoded(self, file: Path) -> Clip:
        """Return the clip of a file without which a command has nothing to do; raises UserError."""
        try:
            return self.clip(file)
        except MediaError as error:
            raise UserError(
                f"{file} cannot be decoded ({error.reason}: {error}); expected a video, or an image with a name that "
                "ends in .jpg, .png or the like"
            ) from error


def checked_run(args: argparse.Namespace) -> Shown:
    """Return the run of `add_answer_arguments`; raises UserError for arguments that do not suit it."""
    shown = Shown(args.run)
    check_mode(shown.run, args.mode)
    if args.tokens < 1:
        raise UserError(f"--tokens is {args.tokens}; expected at least 1")
    if not 0 <= args.temperature < float("inf"):
        raise UserError(f"--temperature is {args.temperature:g}; expected 0 or more")
    if not 0 <= args.seed < 2**63:
        raise UserError(f"--seed is {args.seed}; expected 0 to 2^63 - 1")
    if not shown.run.model.variant.sees:
        print(f"{shown.run.name}: this run has no encoder; it answers without the frames", file=sys.stderr)
    return shown


def check_mode(run: Run, mode: str | None) -> None:
    if mode not in (None, *run.model.modes):
        known = ", ".join(run.model.modes)
        raise UserError(f"--mode is {mode!r}; run {run.name!r} ({run.model.architecture}) has {known}")


def check_question(question: str) -> None:
    if not question.strip():
        raise UserError("a question is empty; expected words, for example 'What happens?'")


def is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES


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


def shown_like(sources: dict[str, dict], kind: str, run: str) -> dict:
    """Return how the run's samples of this kind were shown, or of its other kinds if it has none of this one.

    Its sources may differ; the first is taken, and named.

    sources     source -> {"kind", "crop", "prompt"}; empty for a run of an earlier version
    """
    frames = {name: entry for name, entry in sources.items() if entry["kind"] != "text"}
    alike = {name: entry for name, entry in frames.items() if entry["kind"] == kind} or frames
    if not alike:
        return {}
    first = next(iter(alike))
    others = [name for name in alike if alike[name]["crop"] != alike[first]["crop"]]
    if others:
        way, other = ("cropped", "squashed") if alike[first]["crop"] else ("squashed", "cropped")
        print(
            f"{run}: frames are {way} as in source {first!r}; those of {', '.join(others)} were {other}",
            file=sys.stderr,
        )
    return alike[first]
