"""POPE: is an object in the image? 3 splits with 3,000 questions each, half of them with the answer yes.

https://github.com/RUCAIBox/POPE. Scores are means over the splits: accuracy, F-measure of yes, and the share of yes,
which shows a model that always gives one answer.
"""

import re
from dataclasses import replace
from pathlib import Path

from fvlm.data.readers.row import Row
from fvlm.evaluate.benchmarks.question import TEXT, Benchmark, Question, accuracy, choice

YES, NO = 0, 1  # positions of the options, as the reader gives them


def question(row: Row, folder: Path) -> Question:
    split = row.extra["task"]
    question = choice(row, split=split)
    return replace(question, id=f"{split}-{question.id}")  # each split numbers its questions from 1


def f1(chosen: int | None, answer: int) -> tuple[float, float]:
    """2 TP / (2 TP + FP + FN); the denominator counts the yes of the model and of the truth."""
    return 2.0 * (chosen == answer == YES), float(chosen == YES) + (answer == YES)


def share_of_yes(chosen: int | None, answer: int) -> tuple[float, float]:
    return float(chosen == YES), 1.0


def yes_or_no(answer: str, options: tuple[str, ...]) -> int | None:
    """The official rule: no if `no` or `not` is in the first sentence, else yes. An empty answer names none."""
    words = re.findall(r"\w+", answer.partition(".")[0].casefold())
    if not words:
        return None
    return NO if {"no", "not"} & set(words) else YES


BENCHMARK = Benchmark(
    "POPE",
    "pope",
    question,
    main=TEXT,
    letters=False,
    metrics={"accuracy": accuracy, "f1": f1, "yes": share_of_yes},
    mean_over="split",
    parse=yes_or_no,
    lettered=False,
)
