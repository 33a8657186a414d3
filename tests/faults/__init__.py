"""Faults, injected into a tiny study as often as asked for, and what came of each: the table in docs/reliability.md."""
