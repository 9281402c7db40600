"""Everything that talks to Slurm: its commands, its queue, a job's successor. No torch."""
