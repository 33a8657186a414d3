"""From indices to the batches of a run: the order of its samples, its steps, and the loader."""
