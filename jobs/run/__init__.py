"""What the login node and all jobs share: a run's files, events, errors, exit codes. No torch."""
