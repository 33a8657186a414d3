"""`fvlm chat VIDEO --run results/runs/stage3`: a conversation about a video, an image or a stream."""

import queue
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from fvlm.errors import UserError, first_line
from fvlm.use.ask import opened, until_interrupted
from fvlm.use.options import FinishedRun, add_answer_arguments, check_file, check_stream, checked_run, is_stream


def add_arguments(parser) -> None:
    parser.add_argument("video", type=Path, help="video or image; -: a video on standard input; /dev/video0: a camera")
    add_answer_arguments(parser)


def main(args) -> int:
    finished = checked_run(args)
    if is_stream(args.video):
        check_stream(finished.run, args.mode)
        return until_interrupted(lambda: chat_about_stream(args, finished))
    check_file(args.video)
    return until_interrupted(lambda: chat_about_file(args, finished))


class Conversation:
    """Questions and answers about a video. The oldest ones are forgotten where the model has no position left."""

    def __init__(self, video):
        self.video = video
        self.turns: list[tuple[str, str]] = []

    def say(self, question: str) -> None:
        """Print the answer; Ctrl-C ends it."""
        while self.turns and not self.video.fits(question, self.turns):
            self.turns.pop(0)
        answer = ""
        try:
            for piece in self.video.ask(question, self.turns):
                answer += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass
        print(flush=True)
        self.turns.append((question, answer))


def chat_about_file(args, finished: FinishedRun) -> None:
    """Answer the questions on standard input, with a prompt at a terminal."""
    conversation = Conversation(opened(args, finished))
    if sys.stdin.isatty():
        print("One question per line; Ctrl-D ends.", file=sys.stderr)
    show_prompt(sys.stdin)
    for line in lines_of(sys.stdin):
        conversation.say(line)
        show_prompt(sys.stdin)
    if not conversation.turns and not sys.stdin.isatty():
        raise UserError("standard input has no question; expected one per line, for example: echo 'What happens?' |")


def lines_of(source: TextIO) -> Iterator[str]:
    """Yield the lines that are not empty, one as soon as it is there; raises UserError if one is no text."""
    try:
        while line := source.readline():
            if line.strip():
                yield line.strip()
    except UnicodeDecodeError as error:
        raise UserError(f"a question is no text ({first_line(error)}); expected one in {error.encoding}") from error


def show_prompt(source: TextIO) -> None:
    if source.isatty():
        print("> ", end="", file=sys.stderr, flush=True)


def chat_about_stream(args, finished: FinishedRun) -> None:
    """Read frames as they come, and answer questions in between: those of the frames so far."""
    from fvlm.use.stream import WAITING, open_stream, start_filling

    questions = sys.stdin if str(args.video) != "-" else terminal()
    events = queue.Queue(WAITING)
    start_filling(events, "frame", lambda: open_stream(args.video, finished.crop(args.video)))
    _, first = events.get()
    if isinstance(first, Exception):
        raise first
    video = finished.answers(args).stream()
    conversation = Conversation(video)
    video.show(first[None])
    start_filling(events, "question", lambda: lines_of(questions))
    show_prompt(questions)
    while True:
        kind, content = events.get()
        if isinstance(content, Exception):
            raise content
        if kind == "frame" and content is not None:
            video.show(content[None])
            continue
        if kind == "frame":
            print(f"\nThe video has ended after {video.count} frames; Ctrl-D ends.", file=sys.stderr)
        elif content is None:
            return
        else:
            conversation.say(content)
        show_prompt(questions)


def terminal() -> TextIO:
    try:
        return open("/dev/tty")
    except OSError as error:
        raise UserError(
            "the video comes from standard input, so questions need a terminal, and there is none; use fvlm ask - with "
            "--every"
        ) from error
