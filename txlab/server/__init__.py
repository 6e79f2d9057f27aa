"""The Tinker API, and nothing else."""
