"""The demo's benchmark: what, where, when, how many, and in which order, on generated videos; 4 options.

The demo's models were trained to answer with words, so the question stands alone and the texts of the options are
scored. They never saw letters: the letters show what a model scores that does not understand the form.
"""

from pathlib import Path

from fvlm.data.readers.row import Row
from fvlm.evaluate.benchmarks.question import TEXT, Benchmark, Question, choice, has_options


def question(row: Row, folder: Path) -> Question | None:
    return choice(row, task=row.extra.get("task")) if has_options(row) else None


BENCHMARK = Benchmark("Demo", "demo", question, main=TEXT, lettered=False, tokens=8)
