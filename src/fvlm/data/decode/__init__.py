"""Decoding: from a video or image file to frames at 1 per second."""
