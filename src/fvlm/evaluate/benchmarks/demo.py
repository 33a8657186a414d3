"""The demo's benchmark: what, where, when, how many, and in which order, on generated videos; 4 options.

The demo's models were trained to answer with words, so the question stands alone and the texts of the options are
scored. They never saw letters: the letters show what a model scores that does not understand the form.
"""

from fvlm.evaluate.benchmarks.question import TEXT, Benchmark, by_task

BENCHMARK = Benchmark("Demo", "demo", by_task, main=TEXT, lettered=False, tokens=8)
