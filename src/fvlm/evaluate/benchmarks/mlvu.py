"""MLVU, multiple choice of the dev set: 2,175 questions in 7 tasks, 4 options; the score is the mean over the tasks.

https://github.com/JUNJIE99/MLVU. Two tasks ask for texts; they have no options and are left out. In two rows the right
answer is not among the options; they are counted as unusable.
"""

from fvlm.evaluate.benchmarks.question import Benchmark, by_task

BENCHMARK = Benchmark("MLVU", "mlvu", by_task, mean_over="task")
