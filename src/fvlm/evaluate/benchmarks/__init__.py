"""Benchmarks: questions with given answers, each benchmark in a file of its own.

A file says how a row becomes a question, which of the answers counts as the main one, and how answers are scored.
`registry` lists them; `command` is `fvlm benchmark`.
"""
