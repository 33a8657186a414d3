"""MVBench: 20 tasks with 200 questions each, 3 to 5 options; the score is the mean over the tasks.

https://huggingface.co/datasets/OpenGVLab/MVBench. The videos of one task (fine-grained pose, NTU RGB+D) must be
requested from their owner: most published scores are over 19 tasks.
"""

from fvlm.evaluate.benchmarks.question import Benchmark, by_task

BENCHMARK = Benchmark("MVBench", "mvbench", by_task, mean_over="task")
