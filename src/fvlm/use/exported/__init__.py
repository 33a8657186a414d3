"""The files that `fvlm export` copies into a folder. They need nothing of this package, and nothing here imports them."""
