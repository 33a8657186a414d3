"""Comparisons of runs: differences and gaps with their intervals."""
