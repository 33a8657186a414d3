"""The demo corpus: synthetic scenes, rendered and encoded."""
