"""Whether a job of a run is queued or running: asked before another is submitted for the same directory."""

from __future__ import annotations

from jobs.run.directory import Run
from launch.submit import executors


def is_alive(run: Run, job: str) -> bool:
    """True if `job` (an id as in events) may still run. Slurm's silence counts as alive, as does a
    local job on a machine that cannot be looked at from here."""
    executor = executors.of_job(job)
    return executor is not None and executor.is_alive(run, job)
