"""Slurm: what is asked of it, what it says to a job, and what its words mean."""
