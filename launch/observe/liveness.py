"""Whether a job of a run is queued or running: asked before another is submitted for the same directory."""

from __future__ import annotations

from jobs.run.directory import Run
from launch.submit import executors


def is_alive(run: Run, job: str) -> bool:
    """Whether `job` (an id as in events) may still run. It counts as alive if Slurm does not answer, or if it
    is a local job on a machine that cannot be checked from here."""
    executor = executors.of_job(job)
    return executor is not None and executor.is_alive(run, job)
