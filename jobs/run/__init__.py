"""What commands and jobs share: a run's files, events, errors, exit codes. No torch."""
