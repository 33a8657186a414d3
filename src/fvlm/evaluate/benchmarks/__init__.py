"""Benchmarks: questions with given answers, how they are asked, and how the answers are scored. No torch.

`registry` declares all benchmarks. `fvlm.use.benchmark` is the command `fvlm benchmark`, with the models that answer.
"""
