"""This machine: a run's jobs as one chain of processes (jobs/supervise/local.py)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.run import events
from jobs.run.directory import Run
from jobs.run.errors import UserError
from jobs.run.stages import Stage
from launch.submit import machine, runs
from launch.submit.executors import Submitted

if TYPE_CHECKING:
    from launch.submit.batch_script import Batch
    from launch.submit.data_ready import Prerequisites
    from launch.submit.profiles import Resolved

BATCH_SCRIPTS = False


SLURMS = {
    *("partition", "account", "qos", "reservation", "constraint", "time", "memory", "cpus_per_gpu"),
    *("gpu_type", "signal_delay", "exclude"),
}
"""Settings that mean nothing to a local run. A profile may have them; the command line may not."""


def is_here() -> bool:
    return True


def check(resolved: Resolved) -> None:
    settings = resolved.settings
    if resolved.nodes[0] > 1:
        raise UserError(
            f"--nodes {settings.nodes} needs Slurm, but this run is local: use --nodes 1, or --cluster NAME"
        )
    given = [key.partition(".") for key, source in resolved.sources.items() if source == "command line"]
    if typed := [key for key, dot, _ in given if key in SLURMS or (dot and key == "sbatch")]:
        options = " and ".join(dict.fromkeys(f"--{key.replace('_', '-')}" for key in typed))
        raise UserError(
            f"{options}: only Slurm knows that, but this run is local: leave it out, or give --cluster "
            "NAME (by default, Slurm is used where sbatch is on PATH and knows a cluster)"
        )
    for key in ("setup", "container", "environment"):
        if getattr(settings, key):
            raise UserError(
                f"{resolved.sources[key]}: `{key}` is for Slurm jobs; a local run uses this environment"
            )
    gpus = machine.local_gpus()
    if settings.gres != "none" and 0 < gpus < settings.gpus:
        raise UserError(f"--gpus {settings.gpus}, but this machine has {gpus}: use --gpus {gpus}")
    if gpus == 0 and resolved.stage == "train":
        resolved.hints.append(
            f"no GPU here: --gpus {settings.gpus} means {settings.gpus} "
            f"CPU process{'es over gloo' if settings.gpus > 1 else ''}"
        )


def wait_behind(job: str, holder: bool, arguments: list[str], prerequisites: Prerequisites) -> bool:
    if not holder and not owns(job):
        return False
    # A local preparation that does not hold the lock yet is known by its process.
    argv = [*arguments, "--wait-only", job.removeprefix("local-") if owns(job) else "0"]
    if argv not in prerequisites.stages:
        prerequisites.stages.append(argv)
    return True


def submit(made: Sequence[Run], batches: Sequence[Batch], prerequisites: Prerequisites) -> list[Submitted]:
    """One chain per run. Chains on one machine share its GPUs; without GPUs they run side by side."""
    from launch.submit import submission

    sweep = bool(batches[0].elements)
    with submission.ended_on_error():
        return [
            _submit_chain(run, number if sweep else None, batches, prerequisites)
            for number, run in enumerate(made)
        ]


def _submit_chain(
    run: Run, element: int | None, batches: Sequence[Batch], prerequisites: Prerequisites
) -> Submitted:
    from launch.submit import job_environment, submission

    first = batches[0].resolved
    # It waits for preparations that are on their way, and does not do them itself.
    waits = [
        Stage(name="prepare", command=_command(first, "prepare", *argv)) for argv in prerequisites.stages
    ]
    stages = [*waits, *(_stage(batch, run) for batch in batches)]
    job, process = submission.submit_chain(run.path, stages, job_environment.local(first.settings))
    for stage in stages:
        trains = first.stage == "train"
        events.append(
            run.events,
            "submitted",
            stage=stage.name,
            job=job,
            executor="local",
            nodes=1 if trains else None,
            ranks=stage.tasks if trains else None,
            element=element,
        )
    return {stage.name: job for stage in stages}, process


def _stage(batch: Batch, run: Run | None = None) -> Stage:
    resolved = batch.resolved
    target = [] if resolved.stage == "prepare" else [str(run.path if run else batch.run)]
    command = _command(resolved, resolved.stage, *target, *batch.arguments)
    return Stage(name=resolved.stage, command=command, tasks=resolved.settings.gpus)


def _command(resolved: Resolved, stage: str, *arguments: str) -> list[str]:
    return [resolved.settings.python or sys.executable, "-u", "-m", f"jobs.{stage}", *arguments]


def shown(batches: Sequence[Batch]) -> str:
    from launch.submit import submission

    return submission.shown([_stage(batch) for batch in batches])


def by_hand(made: Sequence[Run]) -> str:
    if len(made) == 1:
        return f"python launch/train.py --resume {runs.typed(made[0])}"
    names = " ".join(map(runs.typed, made))
    return f"for run in {names}; do python launch/train.py --resume $run; done"


def owns(job: str) -> bool:
    return job.startswith("local-")


def is_alive(run: Run, job: str) -> bool:
    """A job on a machine that cannot be looked at from here counts as alive."""
    from launch.observe import local_jobs

    return local_jobs.local_job(run, job) or bool(local_jobs.elsewhere(run, job))


def end(run: Run, jobs: Sequence[str]) -> None:
    """Sends SIGTERM to the chains."""
    from launch.observe import local_jobs

    for job, pid in local_jobs.local_chains(run).items():
        if job not in jobs:
            continue
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
        except PermissionError:
            raise UserError(
                f"{job} (process {pid}) belongs to another user: only that user can end it"
            ) from None
