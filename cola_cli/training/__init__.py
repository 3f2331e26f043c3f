"""Training: objectives, the loop, optimisers, checkpoints, metrics."""
