"""Foveated vision-language model: one visual token per video frame, read where the language model looks."""

__version__ = "0.1.0"
