"""MLVU, multiple choice of the dev set: 2,175 questions in 7 tasks, 4 options; the score is the mean over the tasks.

https://github.com/JUNJIE99/MLVU. Two tasks ask for texts; they have no options and are left out. In two rows the right
answer is not among the options; they are counted as unusable.
"""

from pathlib import Path

from fvlm.data.readers.row import Row
from fvlm.evaluate.benchmarks.question import Benchmark, Question, choice, has_options


def question(row: Row, folder: Path) -> Question | None:
    return choice(row, task=row.extra.get("task")) if has_options(row) else None


BENCHMARK = Benchmark("MLVU", "mlvu", question, mean_over="task")
