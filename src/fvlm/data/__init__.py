"""Videos, images and text: from raw files to batches. Imports nothing of `model/`."""
