"""Numbers, and nothing else."""
