"""The one training loop, its optimiser, checkpoints and logs."""
