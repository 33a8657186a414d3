"""Held-out losses by mode and source, attention maps, captions of a video."""
