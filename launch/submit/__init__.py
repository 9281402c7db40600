"""From a command line to a job: options, profile, run directory, snapshot, batch script, submission."""
