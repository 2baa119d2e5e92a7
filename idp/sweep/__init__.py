"""Sweeps: their cells on disk, SLURM jobs that need no one to wait for them, and where each cell stands."""
