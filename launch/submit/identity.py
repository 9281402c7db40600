"""Does a job that has the id of one of ours belong to us? Ids are reused, and another cluster has its own.

Today's job 12 of somebody else, or of another run, must not be taken for an old run's job 12: it is neither
shown as that run's, nor waited for, nor cancelled. The cluster, the time of submission, the batch script,
the user and the job's name are compared.
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
    """`answer` without the jobs that only share an id with one of this run's: these then count as unknown to
    Slurm (UNKNOWN)."""
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
    say of it. What Slurm does not report is no evidence."""
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
    # Accounting has no script for a job that has left the queue, and it may have been renamed: it is another
    # one only if it was submitted after the run's last event.
    return bool(seen.command) or (seen.submit is not None and seen.submit > past.last + SLACK)


def owner_of(run: Run) -> str:
    try:
        return pwd.getpwuid(os.stat(run.path).st_uid).pw_name
    except (OSError, KeyError):
        return ""


def is_own_script(run: Run, command: str) -> bool | None:
    """Whether a job's batch script is this run's (else another's); None if the script does not tell."""
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
    # All runs of a sweep share one script.
    return None if _stem(folder.parent.name) == _stem(run.name) else False


def names(run: Run) -> set[str]:
    """The names of the run's jobs: those that the launchers give, and those of jobs/*.sbatch."""
    stages = ("train", "evaluate", "infer", "export", "prepare")
    of_run = {
        f"{name}{end}"
        for name in (run.name, _stem(run.name))
        for end in ("", "-evaluate", "-infer", "-export")
    }
    return of_run | {f"baton-{stage}" for stage in stages}


def _stem(name: str) -> str:
    """The name of a sweep's job array, from the name of one of its runs."""
    return re.sub(r"-[0-9]+$", "", name)
