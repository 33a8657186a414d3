"""The foveated model and its baselines. Knows tensors; knows no files and no shards."""
