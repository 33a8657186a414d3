"""The foveated model and its baselines: tensors alone, no files and no shards."""
