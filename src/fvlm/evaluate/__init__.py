"""Evaluation of finished runs: held-out losses by mode and source, attention maps."""
