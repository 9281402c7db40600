"""Slurm: batch scripts in its queue, each depending on the one before."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from jobs.run import events, files
from jobs.run.directory import Run
from jobs.run.errors import UserError
from jobs.slurm import login as slurm
from jobs.slurm import queries
from launch.submit import machine
from launch.submit.executors import Submitted

if TYPE_CHECKING:
    from launch.submit.batch_script import Batch
    from launch.submit.data_ready import Prerequisites
    from launch.submit.profiles import Resolved

BATCH_SCRIPTS = True


def is_here() -> bool:
    return machine.has_slurm()


def check(resolved: Resolved) -> None:
    """Checks nothing: sbatch knows what its cluster has."""


def wait_behind(job: str, holder: bool, arguments: list[str], prerequisites: Prerequisites) -> bool:  # noqa: ARG001
    if job.isdigit() and job not in prerequisites.jobs:
        prerequisites.jobs.append(job)
    return job.isdigit()


def submit(made: Sequence[Run], batches: Sequence[Batch], prerequisites: Prerequisites) -> list[Submitted]:
    """A sweep is a job array; each element waits for the same element of the array before (aftercorr)."""
    from launch.submit import submission

    sweep = bool(batches[0].elements)
    jobs: dict[str, str] = {}
    after, how = prerequisites.dependency, "afterok"
    with ExitStack() as stack:
        for batch in batches:
            stage = batch.resolved.stage
            job = submission.submit_script(made[0].job / files.SCRIPT(STAGE=stage), after=after, how=how)
            jobs[stage] = after = job
            how = "aftercorr" if sweep else "afterok"
            stack.enter_context(submission.withdrawn_on_error(job))
        return [
            (_noted(run, number if sweep else None, jobs, batches, prerequisites), None)
            for number, run in enumerate(made)
        ]


def _noted(
    run: Run,
    element: int | None,
    jobs: dict[str, str],
    batches: Sequence[Batch],
    prerequisites: Prerequisites,
) -> dict[str, str]:
    """Appends the events of one run; returns the ids of its jobs."""
    ids = {stage: job if element is None else f"{job}_{element}" for stage, job in jobs.items()}
    after = prerequisites.dependency
    for batch in batches:
        stage, settings = batch.resolved.stage, batch.resolved.settings
        trains = stage == "train"
        events.append(
            run.events,
            "submitted",
            stage=stage,
            job=ids[stage],
            executor="slurm",
            cluster=machine.cluster_name() or None,
            element=element,
            after=after or None,
            nodes=batch.resolved.nodes[1] if trains else None,
            ranks=batch.resolved.nodes[1] * settings.gpus if trains else None,
        )
        after = ids[stage]
    return ids


def shown(batches: Sequence[Batch]) -> str:
    from launch.submit import batch_script

    return "\n".join(map(batch_script.text, batches))


def by_hand(made: Sequence[Run]) -> str:
    # Each run of a sweep has the script of the whole array.
    return f"sbatch {shlex.quote(str(made[0].job / files.SCRIPT(STAGE='train')))}"


def owns(job: str) -> bool:
    return queries.is_slurm(job)


def is_alive(run: Run, job: str) -> bool:
    """A job counts as alive if squeue cannot be asked."""
    from launch.observe import history
    from launch.submit import identity

    answer = identity.mine(run, history.read(run), queries.ask([job], patience=30))
    return answer.job(job).alive or any(problem.startswith("squeue") for problem in answer.problems)


def end(run: Run, jobs: Sequence[str]) -> None:  # noqa: ARG001
    """Calls scancel. Raises UserError with Slurm's own message."""
    try:
        slurm.call("scancel", *jobs)
    except slurm.SlurmError as error:
        text = str(error).lower()
        denied = "permission denied" in text
        if not denied and any(over in text for over in ("already completing", "invalid job id", "completed")):
            return
        whose = "; only the user who submitted them can" if denied else ""
        raise UserError(f"cannot cancel {', '.join(jobs)}: {error}{whose}") from None
