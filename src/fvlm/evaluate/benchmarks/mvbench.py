"""MVBench: 20 tasks with 200 questions each, 3 to 5 options; the score is the mean over the tasks.

https://huggingface.co/datasets/OpenGVLab/MVBench. The videos of one task (fine-grained pose, NTU RGB+D) must be
requested from their owner: most published scores are over 19 tasks.
"""

from pathlib import Path

from fvlm.data.readers.row import Row
from fvlm.evaluate.benchmarks.question import Benchmark, Question, choice


def question(row: Row, folder: Path) -> Question:
    return choice(row, task=row.extra["task"])


BENCHMARK = Benchmark("MVBench", "mvbench", question, mean_over="task")
