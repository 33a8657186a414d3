"""`fvlm ask VIDEO QUESTION... --run results/runs/stage3`: ask about a video, an image or a stream."""

import signal
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from fvlm.errors import UserError
from fvlm.use.options import (
    FinishedRun,
    add_answer_arguments,
    check_file,
    check_question,
    check_stream,
    checked_run,
    is_stream,
)


def add_arguments(parser) -> None:
    parser.add_argument("video", type=Path, help="video or image; -: a video on standard input; /dev/video0: a camera")
    parser.add_argument("questions", nargs="+", help="one or more questions")
    parser.add_argument(
        "--every",
        type=int,
        metavar="FRAMES",
        help="of a stream: answer after so many further frames (default: at its end)",
    )
    add_answer_arguments(parser)


def main(args) -> int:
    finished = checked_run(args)
    for question in args.questions:
        check_question(question)
    live = is_stream(args.video)
    if args.every is not None and (not live or args.every < 1):
        raise UserError(f"--every is {args.every} of {args.video}; expected at least 1, and a stream (- or a camera)")
    if live:
        check_stream(finished.run, args.mode)
        return until_interrupted(lambda: ask_stream(args, finished))
    check_file(args.video)
    return until_interrupted(lambda: answer_all(opened(args, finished), args.questions))


def until_interrupted(work: Callable[[], None]) -> int:
    """Answer until the work is done or Ctrl-C, which is no failure to report; return the exit status."""
    try:
        work()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def opened(args, finished: FinishedRun):
    """Return the video or image of a command, ready to ask; raises UserError if it cannot be decoded."""
    frames = finished.needed_frames(args.video)
    return finished.answers(args).video(frames)


def ask_stream(args, finished: FinishedRun) -> None:
    """Read a stream to its end, and answer there or every few frames."""
    from fvlm.use.stream import as_they_come

    frames = as_they_come(args.video, finished.crop(args.video))
    first = next(frames)
    video = finished.answers(args).stream()
    for frame in chain([first], frames):
        video.show(frame[None])
        if args.every and video.count % args.every == 0:
            print(f"[{video.count} frames]")
            answer_all(video, args.questions)
    if not args.every or video.count % args.every:
        print(f"{video.count} frames; the answer is about the last {video.kept}", file=sys.stderr)
        answer_all(video, args.questions)


def answer_all(video, questions: list[str]) -> None:
    """Print the answers, each with its question if there are several."""
    for question in questions:
        if len(questions) > 1:
            print(f"> {question}")
        for piece in video.ask(question):
            print(piece, end="", flush=True)
        print(flush=True)
