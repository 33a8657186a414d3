"""ScienceQA-IMG: the 2,017 test questions with an image, 2 to 5 options; guessing gives 40 %.

https://huggingface.co/datasets/lmms-lab/ScienceQA.
"""

from pathlib import Path

from fvlm.data.readers.row import Row
from fvlm.evaluate.benchmarks.question import Benchmark, Question, choice


def question(row: Row, folder: Path) -> Question | None:
    if row.extra.get("split", "test") != "test":  # problems.json has all splits
        return None
    return choice(row, subject=row.extra.get("task"), grade=row.extra.get("grade"), options=len(row.extra["options"]))


BENCHMARK = Benchmark("ScienceQA-IMG", "scienceqa", question)
