"""The files that `fvlm export` copies into a folder. They need nothing of this package."""
