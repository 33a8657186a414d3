"""Ask all questions of a benchmark, one line of a record each, and write the scores."""

import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from fvlm import __version__
from fvlm.config.schema import Source
from fvlm.data.decode.media import MediaError
from fvlm.data.progress import Progress
from fvlm.errors import UserError, first_line
from fvlm.evaluate.benchmarks.ask import ask
from fvlm.evaluate.benchmarks.question import Benchmark, Question
from fvlm.evaluate.benchmarks.questions import MISSING, Questions
from fvlm.evaluate.benchmarks.scores import COLUMNS, rows_of
from fvlm.evaluate.benchmarks.shown import Shown, load
from fvlm.evaluate.losses import Scored
from fvlm.files import digest_of
from fvlm.records import write_csv


def work(answerer, name: str, benchmark: Benchmark, questions: Questions, source: Source, out: Path) -> None:
    """Ask all questions, go on behind those that are answered already, and write the table of scores.

    The record beside the table has one line per question; it stays, so that every score can be checked.
    """
    kind = "image" if all(media.image for one in questions.usable for media in one.media) else "video"
    crop = answerer.crop(kind, source.crop)
    settings = (answerer.max_frames, answerer.static_frames, crop)
    described = (__version__, name, COLUMNS, settings, answerer.computed, questions.identity)
    record = Scored(out.with_suffix(".jsonl"), digest_of(repr(described), answerer.weights))
    if record:
        print(f"{name}: {len(record)} questions were answered before", file=sys.stderr, flush=True)
    for problem in questions.problems[len(record) :]:
        record.append([problem])
    first = len(record) - len(questions.problems)

    @lru_cache(maxsize=4)
    def shown(place: int) -> Shown:
        return load(questions.usable[place].media, questions.folder, crop, *settings[:2])

    progress = Progress(name, len(questions.usable) - first, "questions")
    for place in range(first, len(questions.usable)):
        record.append([_record(answerer, benchmark, questions.usable, place, shown)])
        progress.step()
    rows = rows_of(answerer.name, name, benchmark, answerer.modes, record.rows)
    if not rows:
        raise UserError(f"benchmark {name}: no video can be decoded; see {record.log.path}")
    write_csv(out, rows, COLUMNS)
    for row in rows:
        if row["main"]:
            chance = "" if row["chance"] is None else f", guessing {row['chance']:.1f} %"
            score = f"{row['metric']} {row['score']:.1f} %{chance}"
            print(f"{name}: {score}, {row['questions']} of {row['total']} questions", file=sys.stderr)


def _record(
    answerer, benchmark: Benchmark, questions: list[Question], place: int, shown: Callable[[int], Shown]
) -> dict:
    """Return the record of a question; of a video that cannot be decoded, its problem."""
    question = questions[place]
    try:
        own = shown(_first_of(questions, place))
    except MediaError as error:
        return {"id": question.id, "problem": f"{error.reason}: {first_line(error)}", "reason": MISSING}
    return ask(answerer, benchmark, question, own, _other(questions, place, shown))


def _first_of(questions: list[Question], place: int) -> int:
    """Return the place of the first of the questions before this one that show the same, so that it is decoded once."""
    while place and questions[place - 1].media == questions[place].media:
        place -= 1
    return place


def _other(questions: list[Question], place: int, shown: Callable[[int], Shown]) -> Shown | None:
    """Return the frames of the next video that can be decoded; None if there is no other one."""
    for step in range(1, len(questions)):
        other = (place + step) % len(questions)
        if questions[other].video != questions[place].video:
            try:
                return shown(_first_of(questions, other))
            except MediaError:
                continue
    return None
