"""What tests and benchmarks both use: a Slurm cluster on this machine, small trainings, a terminal."""
