"""Is a job that has the number of one of ours ours? Numbers begin anew, and another cluster has its own.

An old run's job 12 must not be taken for today's job 12 of somebody else, or of another run: neither shown
as that run's, nor waited for, nor cancelled. Compared are the cluster, when it was submitted, its batch
script, whose job it is, and its name.
"""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

import msgspec

from jobs.run.directory import Run
from jobs.run.past import History, StageJob
from jobs.slurm.queries import Answer, Job
from launch.submit import machine

SLACK = 300.0
"""Seconds by which two machines' clocks may differ."""

_TRACKED = re.compile(r"/jobs/(?:train|evaluate|infer|export|prepare)\.sbatch(?: (.*))?$")


def mine(run: Run, past: History, answer: Answer) -> Answer:
    """`answer` without those jobs that only have the number of one of this run's: of those Slurm says
    nothing then (UNKNOWN)."""
    submitted = {job.id: job for job in past.jobs.values()}
    ids = {*submitted, *(one.job for one in past.incarnations), *filter(None, [past.reserve])}
    return without(answer, {id for id in ids if is_stranger(run, past, answer.job(id), submitted.get(id))})


def without(answer: Answer, strangers: set[str]) -> Answer:
    if not strangers:
        return answer
    kept = {id: job for id, job in answer.jobs.items() if id not in strangers}
    return msgspec.structs.replace(answer, jobs=kept)


def is_stranger(run: Run, past: History, seen: Job, noted: StageJob | None = None) -> bool:
    """Whether Slurm's job `seen` is certainly not the one that the run's events mean; `noted` is what they
    say of it. What Slurm does not tell is not held against it."""
    if noted is not None and noted.cluster and (here := machine.cluster_name()) and here != noted.cluster:
        return True
    if not (seen.name or seen.command):
        return False
    announced = noted is not None and noted.executor == "slurm"
    if announced and seen.submit is not None and noted is not None and seen.submit < noted.submitted - SLACK:
        return True
    if seen.command and (own := is_own_script(run, seen.command)) is not None:
        return not own
    if seen.user and (owner := owner_of(run)) and seen.user != owner:
        return True
    if not seen.name or seen.name in names(run):
        return False
    # Of a job that has left the queue accounting knows no script, and it may have been renamed: another is
    # one that was submitted after all that this run has said.
    return bool(seen.command) or (seen.submit is not None and seen.submit > past.last + SLACK)


def owner_of(run: Run) -> str:
    try:
        return pwd.getpwuid(os.stat(run.path).st_uid).pw_name
    except (OSError, KeyError):
        return ""


def is_own_script(run: Run, command: str) -> bool | None:
    """Whether a job's batch script is this run's, or another's; None where the script does not tell."""
    if tracked := _TRACKED.search(command):
        words = (tracked[1] or "").split()
        return (run.name in {word.rpartition("/")[2] for word in words}) if words else None
    folder = Path(command).parent
    if folder.name != "job":
        return None
    if folder in (run.job, run.job.resolve()):
        return True
    try:
        if os.path.samefile(folder, run.job):
            return True
    except OSError:  # gone, or moved
        return None
    # One script for all runs of a sweep.
    return None if _stem(folder.parent.name) == _stem(run.name) else False


def names(run: Run) -> set[str]:
    """The names that the launchers give to the run's jobs, and those of jobs/*.sbatch."""
    stages = ("train", "evaluate", "infer", "export", "prepare")
    of_run = {
        f"{name}{end}"
        for name in (run.name, _stem(run.name))
        for end in ("", "-evaluate", "-infer", "-export")
    }
    return of_run | {f"baton-{stage}" for stage in stages}


def _stem(name: str) -> str:
    """The name of a sweep's job array, of one of its runs."""
    return re.sub(r"-[0-9]+$", "", name)
