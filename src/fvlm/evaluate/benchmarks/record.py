"""Ask a model all questions of a benchmark, keep one line per question, and write the scores."""

import json
import math
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from fvlm import __version__
from fvlm.config.schema import Source
from fvlm.data.decode.media import Media, MediaError
from fvlm.data.decode.pool import DecodePool, decode
from fvlm.data.progress import Progress
from fvlm.errors import UserError, first_line
from fvlm.evaluate.benchmarks.ask import ask
from fvlm.evaluate.benchmarks.question import Benchmark, Question
from fvlm.evaluate.benchmarks.questions import MISSING, UNUSABLE, Questions
from fvlm.evaluate.benchmarks.scores import COLUMNS, rows_of
from fvlm.evaluate.frames import Frames, load_frames
from fvlm.files import digest_of, write_beside
from fvlm.records import MetricsLog, write_csv


def answer_questions(model, name: str, benchmark: Benchmark, questions: Questions, source: Source, out: Path) -> None:
    """Ask all questions that have no answer in the record yet, and write the table of scores.

    model   as in `ask`
    out     the table; the record stays beside it, so that every score can be checked
    """
    kind = "image" if all(media.image for one in questions.usable for media in one.media) else "video"
    crop = model.crop(kind, source.crop)
    depends = (__version__, name, benchmark.asks, model.settings, crop, model.max_frames, model.static_frames)
    record = Record(out.with_suffix(".jsonl"), digest_of(repr(depends), model.weights), questions)
    if record.answers:
        print(f"{name}: {len(record.answers)} questions were answered before", file=sys.stderr, flush=True)
    progress = Progress(name, len(questions.usable) - len(record.answers), "questions")
    rows = []
    with DecodePool(partial(decode, folder=questions.folder, crop=crop), deadline_s=source.deadline_s) as pool:

        @lru_cache(maxsize=3)  # many questions are about one video, and the next one's frames are a control
        def load(media: tuple[Media, ...]) -> Loaded:
            try:
                frames = load_frames(
                    media, lambda one: pool.submit(one).result(), model.max_frames, model.static_frames
                )
            except MediaError as error:
                return error
            return frames, model.video(frames)

        for place, question in enumerate(questions.usable):
            row = record.answers.get(question.key)
            if row is None:
                row = _answered(model, benchmark, questions.usable, place, load)
                record.append(row)
                progress.step()
            rows.append(row)
    scores = rows_of(model.name, name, benchmark, model.modes, [*rows, *questions.problems])
    if not scores:
        raise UserError(f"benchmark {name}: no question can be answered; see {record.log.path}")
    write_csv(out, scores, COLUMNS)
    for row in scores:
        if row["main"]:
            chance = "" if row["chance"] is None else f", guessing {row['chance']:.1f} %"
            score = f"{row['metric']} {row['score']:.1f} %{chance}"
            print(f"{name}: {score}, {row['questions']} of {row['total']} questions", file=sys.stderr)


class Record:
    """A file of JSON lines: what all answers depend on, then one line per question.

    An existing file keeps the answers that still hold: those of the same model and settings, to questions with the same
    content and files. Questions that could not be asked are tried again.

    identity    hash of the model and the settings
    answers     key of a question -> its record
    """

    def __init__(self, path: Path, identity: str, questions: Questions):
        header = {"step": 0, "identity": identity}
        first, *lines = MetricsLog(path, math.inf).records() or [None]
        rows = [row for line in lines for row in line["rows"]] if first == header else []
        keys = {question.key for question in questions.usable}
        self.answers = {row["key"]: row for row in rows if row.get("key") in keys}
        kept = [*self.answers.values(), *questions.problems]
        content = [header, *({"step": step, "rows": [row]} for step, row in enumerate(kept, 1))]
        write_beside(path, lambda part: part.write_text("".join(json.dumps(line) + "\n" for line in content)))
        self.log, self.lines = MetricsLog(path, math.inf), len(kept)

    def append(self, row: dict) -> None:
        """raises   UserError if the file cannot be written"""
        self.lines += 1
        self.log.append({"step": self.lines, "rows": [row]})


Loaded = tuple[Frames, object] | MediaError  # the frames, and what `model.video` makes of them


def _answered(
    model, benchmark: Benchmark, questions: list[Question], place: int, load: Callable[[tuple[Media, ...]], Loaded]
) -> dict:
    """Return the record of a question; of a video that cannot be decoded, or a prompt that is too long, the problem."""
    question = questions[place]
    own = load(question.media)
    if isinstance(own, MediaError):
        return {"id": question.id, "problem": f"{own.reason}: {first_line(own)}", "reason": MISSING}
    name = video = None
    for other in questions[place + 1 :] + questions[:place]:
        if other.video != question.video and not isinstance(loaded := load(other.media), MediaError):
            name, video = other.video, loaded[1]
            break
    try:
        return ask(model, benchmark, question, *own, video) | {"other": name}
    except UserError as error:
        return {"id": question.id, "problem": str(error), "reason": UNUSABLE}
