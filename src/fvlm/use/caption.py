"""`fvlm caption FILE --run results/runs/stage3`: caption a video, or answer a question about it."""

import sys
from pathlib import Path

from fvlm.data.decode.media import IMAGE_SUFFIXES
from fvlm.errors import UserError
from fvlm.evaluate.read import SOURCES, read_run

QUESTION = "Say what happens in the video."  # for a run that did not save the prompts of its sources


def add_arguments(parser) -> None:
    parser.add_argument("files", nargs="+", type=Path, help="videos or images")
    parser.add_argument(
        "--run", required=True, type=Path, help="folder of a finished run, for example results/runs/stage3"
    )
    parser.add_argument("--question", help="question or instruction (default: the prompt that the run was trained on)")
    parser.add_argument("--tokens", type=int, default=60, help="longest answer, in tokens (default: %(default)s)")
    parser.add_argument(
        "--mode",
        default=None,
        help="coarse_only, coarse_fine or autoregressive (default: autoregressive if the run has it)",
    )


def main(args) -> int:
    run, beside = read_run(args.run)
    missing = [str(file) for file in args.files if not file.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: no such file; expected a video or an image")
    from fvlm.use.answer import Answers  # imports torch, which takes seconds

    answers = Answers(args.run, args.mode, args.tokens)
    for file in args.files:
        still = file.suffix.lower() in IMAGE_SUFFIXES
        shown = shown_like(beside[SOURCES], "image" if still else "video", run.name)
        question = args.question or shown.get("prompt") or QUESTION
        print(f"{file}: {answers.answer(file, question, still, shown.get('crop', True))}")
    return 0


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
