"""Whether a job of a run is queued or running: asked before another is submitted for the same directory."""

from __future__ import annotations

from jobs.run.directory import Run
from jobs.slurm import queries as slurm_queries
from launch.observe import history, states
from launch.submit import identity


def is_alive(run: Run, job: str) -> bool:
    """True if `job` (an id as in events) may still run. Slurm's silence counts as alive, as does a
    local job on a machine that cannot be looked at from here."""
    if not job:
        return False
    if not job.startswith("local-"):
        answer = identity.mine(run, history.read(run), slurm_queries.ask([job], patience=30))
        return answer.job(job).alive or any(problem.startswith("squeue") for problem in answer.problems)
    return states.local_job(run, job) or bool(states.elsewhere(run, job))
