"""What the benchmarks on a real Slurm share."""
