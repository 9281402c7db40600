"""What a machine needs: dependencies, set-up, the Slurm test cluster."""
