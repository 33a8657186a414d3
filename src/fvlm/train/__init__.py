"""The training loop, optimizer, checkpoints and metrics."""
