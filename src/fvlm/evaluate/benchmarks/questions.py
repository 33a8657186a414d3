"""The questions of a benchmark, read from its tables; those without their video or options are counted. No torch."""

import os
import sys
from dataclasses import replace
from pathlib import Path

from fvlm.config.schema import Source
from fvlm.data.readers import iterate_rows
from fvlm.data.readers.row import in_any_form
from fvlm.data.sources import reader_of, source_folder, table_of
from fvlm.errors import UserError
from fvlm.evaluate.benchmarks.captions import check_package
from fvlm.evaluate.benchmarks.question import Benchmark, Question

MISSING, UNUSABLE = "missing", "unusable"
NAMED = 3  # problems that a message lists


class Questions:
    """The questions of a benchmark, in the order of its tables.

    usable      questions that can be answered
    problems    records of the others: {"id", "problem", "reason"}
    folder      that the names of files start from
    """

    def __init__(self, benchmark: Benchmark, source: Source, results: str):
        self.folder = source_folder(source, results)
        self.usable: list[Question] = []
        self.problems: list[dict] = []
        questions, known = [], {}  # many questions may be about one image in a table, which is held once
        for row in iterate_rows(self.folder, table_of(source), reader=reader_of(source)):
            if row.problem:
                reason = MISSING if row.reason == "missing" else UNUSABLE
                self.problems.append({"id": f"row {row.number}", "problem": row.problem, "reason": reason})
            elif question := benchmark.question(row, self.folder):
                media = tuple(known.setdefault((one.file, one.span_s), one) for one in question.media)
                questions.append(replace(question, media=media))
        present = {media.file for media in known.values() if media.content is None}
        self.bytes = {file: _size(in_any_form(self.folder, file)) for file in present}
        for question in _with_all_references(questions) if benchmark.captions else questions:
            absent = [media.file for media in question.media if self.bytes.get(media.file, 1) is None]
            if absent:
                self.problems.append({"id": question.id, "problem": f"{absent[0]}: no such file", "reason": MISSING})
            else:
                self.usable.append(question)

    @property
    def identity(self) -> tuple:
        """All that the answers depend on, of the questions and their files."""
        subtitles = sorted({q.subtitles for q in self.usable if q.subtitles})
        # the name of an image in a table is a digest of its bytes
        usable = [(replace(q, media=()), [(one.file, one.span_s) for one in q.media]) for q in self.usable]
        sizes = [*self.bytes.items(), *((str(path), _size(path)) for path in subtitles)]
        return usable, self.problems, sorted(sizes, key=str)


def _size(path: Path) -> int | None:
    return os.stat(path).st_size if path.is_file() else None


def _with_all_references(questions: list[Question]) -> list[Question]:
    """Return one question per video, with the captions of all its rows."""
    by_video: dict[str, Question] = {}
    for question in questions:
        first = by_video.setdefault(question.video, question)
        if first is not question:
            by_video[question.video] = replace(first, references=first.references + question.references)
    return list(by_video.values())


def check_questions(name: str, benchmark: Benchmark, source: Source, results: str) -> Questions:
    """Return the questions of a benchmark, and print how many of them cannot be asked.

    raises      UserError if the folder or its tables are not there, none of the videos is, or two questions have one id
    """
    if benchmark.captions:
        check_package()
    questions = Questions(benchmark, source, results)
    where = f"benchmark {name}, {questions.folder}"
    if not questions.usable:
        found = f" ({questions.problems[0]['problem']})" if questions.problems else ""
        raise UserError(f"{where}: no question has its video{found}; expected the files of docs/benchmarks.md")
    ids = [question.id for question in questions.usable]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise UserError(f"{where}: two questions are called {twice}; name one table, or remove the second one")
    for reason, words in ((MISSING, "questions lack their video"), (UNUSABLE, "rows cannot be used")):
        problems = [one["problem"] for one in questions.problems if one["reason"] == reason]
        if problems:
            listed = "; ".join(problems[:NAMED])
            print(f"{where}: {len(problems)} {words} and are not scored: {listed}", file=sys.stderr)
    return questions
