"""The questions of a benchmark, read from its tables; those without their video or options are counted. No torch."""

import sys
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from fvlm.config.schema import Source
from fvlm.data.readers import iterate_rows
from fvlm.data.readers.row import in_any_form
from fvlm.data.sources import reader_of, source_folder, table_of
from fvlm.errors import UserError
from fvlm.evaluate.benchmarks.question import Benchmark, Question
from fvlm.files import digest_of

MISSING, UNUSABLE = "missing", "unusable"
NAMED = 3  # problems that a message lists


@dataclass(frozen=True)
class Questions:
    """The questions of a benchmark, in the order of its tables.

    folder      that the names of files start from
    usable      questions that can be answered
    problems    records of the others: {"id", "problem", "reason"}
    """

    folder: Path
    usable: list[Question]
    problems: list[dict]


def read_questions(name: str, benchmark: Benchmark, source: Source, results: str) -> Questions:
    """Return the questions of a benchmark, and print how many of them cannot be asked.

    raises      UserError if the folder or its tables are not there, none of the videos is, or two questions have one id
    """
    folder = source_folder(source, results)
    found = Questions(folder, [], [])
    questions, known = [], {}  # many questions may be about one image in a table, which is held once
    for row in iterate_rows(folder, table_of(source), reader=reader_of(source)):
        if row.problem:
            reason = MISSING if row.reason == "missing" else UNUSABLE
            found.problems.append({"id": f"row {row.number}", "problem": row.problem, "reason": reason})
        elif question := benchmark.question(row, folder):
            media = tuple(known.setdefault((one.file, one.span_s), one) for one in question.media)
            questions.append(replace(question, media=media))

    @cache
    def size(path: Path) -> int | None:
        return path.stat().st_size if path.is_file() else None

    for question in _with_all_references(questions) if benchmark.captions else questions:
        files = {one.file: size(in_any_form(folder, one.file)) for one in question.media if one.content is None}
        absent = next((file for file, bytes_ in files.items() if bytes_ is None), None)
        if absent is None:
            found.usable.append(replace(question, key=_key(question, files, size)))
        else:
            found.problems.append({"id": question.id, "problem": f"{absent}: no such file", "reason": MISSING})
    _check(f"benchmark {name}, {folder}", found)
    return found


def _key(question: Question, files: dict[str, int], size) -> str:
    # the name of an image in a table is a digest of its bytes
    media = [(one.file, one.span_s, files.get(one.file)) for one in question.media]
    subtitles = question.subtitles and size(question.subtitles)
    return digest_of(repr((replace(question, media=(), subtitles=None), media, subtitles)), ())[:16]


def _with_all_references(questions: list[Question]) -> list[Question]:
    """Return one question per video, with the captions of all its rows."""
    by_video: dict[str, Question] = {}
    for question in questions:
        first = by_video.setdefault(question.video, question)
        if first is not question:
            by_video[question.video] = replace(first, references=first.references + question.references)
    return list(by_video.values())


def _check(where: str, found: Questions) -> None:
    if not found.usable:
        reason = f" ({found.problems[0]['problem']})" if found.problems else ""
        raise UserError(f"{where}: no question has its video{reason}; expected the files of docs/benchmarks.md")
    (name, count), *_ = Counter(question.id for question in found.usable).most_common(1)
    if count > 1:
        raise UserError(f"{where}: two questions are called {name}; name one table, or remove the second one")
    for reason, words in ((MISSING, "questions lack their video"), (UNUSABLE, "rows cannot be used")):
        problems = [one["problem"] for one in found.problems if one["reason"] == reason]
        if problems:
            listed = "; ".join(problems[:NAMED])
            print(f"{where}: {len(problems)} {words} and are not scored: {listed}", file=sys.stderr)
