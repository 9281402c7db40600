"""Slurm's commands as jobs call them, and what Slurm makes of a job that ends now (`fate`)."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

from jobs.run.task import slurm_id
from jobs.slurm import commands
from jobs.slurm.commands import Answer

PATIENCE = 600.0
"""Seconds that a call goes on trying while the controller does not answer: it may be restarting, failing over
or being upgraded, and giving up would end a run that has days to go."""
COMMAND_SECONDS = commands.SBATCH_SECONDS
"""A command that says nothing for so long has lost its controller."""
MARKS_GRACE = (24, 5)
"""The first Slurm that takes a job's end within its grace time for the preemption's ("assume that job
signalled for GraceTime was preempted", its NEWS). No field of the job shows that mark."""

Fate = Literal["own", "requeued", "preempted"]
"""What Slurm makes of a job that ends now. own: what its exit code says. Whatever that says: requeued, as it
was; preempted, which is for good, and no success to those who depend on it."""


def call(command: Sequence[str], env: Mapping[str, str] | None = None, *, again: bool = True) -> Answer:
    """Runs one of Slurm's commands; never raises, since there is always another way to try.

    While the controller is away it is tried again for PATIENCE seconds. Without `again` (what must not be
    done twice), only if the controller cannot have got the request.
    """
    answer = commands.run(
        command, env, patience=PATIENCE, limit=COMMAND_SECONDS, again=again,
        say=lambda text: print(f"baton: {text}", flush=True), every=120.0,
    )  # fmt: skip
    return dataclasses.replace(answer, text=answer.text.strip())


def this_job() -> dict[str, str]:
    """What `scontrol show job` says of the job this process belongs to, field by field; {} outside of Slurm
    or when it cannot be asked. Of a field that names several things (ReqB:S:C:T) all is one name."""
    job = slurm_id()
    answer = call(["scontrol", "show", "job", "-o", job]) if job else Answer(False, "")
    lines = answer.text.splitlines()
    # A name or a path may hold spaces: a value ends where the next field begins.
    pattern = r"([A-Z][\w/:]*)=(.*?)(?=\s+[A-Z][\w/:]*=|\s*$)"
    # The first of a name counts: what looks like fields in the line that submitted the job comes late.
    fields = dict(reversed(re.findall(pattern, lines[0]))) if answer.ok and lines else {}
    return {name: value for name, value in fields.items() if value not in ("(null)", "N/A", "None", "")}


def state() -> str:
    """Slurm's state of this job, such as RUNNING; UNKNOWN outside of Slurm or when it cannot be asked."""
    return this_job().get("JobState", "UNKNOWN")


def is_cancelled(job: Mapping[str, str]) -> bool:
    """Whether somebody has cancelled this job, which is as `this_job` shows it.

    While anything of a job lives that has been ended, it is COMPLETING, whatever it is ended for. Of one that
    Slurm has requeued it lets itself be told, of one that is over it does not; and what is over for another
    reason than scancel says for which.
    """
    if job.get("JobState") != "COMPLETING":
        return job.get("JobState") == "CANCELLED"
    if "PreemptTime" in job or "Reason" in job:
        return False
    answer = call(["scontrol", "update", f"JobId={slurm_id()}", f"Requeue={job.get('Requeue', '1')}"])
    return not answer.ok and "already finished" in answer.text


def span() -> tuple[float, float] | None:
    """When this job began and when its time limit ends it, in seconds since the epoch; None outside of Slurm
    or when it cannot be asked. To be called early: a job that is being preempted is given another end."""
    try:
        if "SLURM_JOB_END_TIME" in os.environ:
            return float(os.environ["SLURM_JOB_START_TIME"]), float(os.environ["SLURM_JOB_END_TIME"])
        job = this_job()  # Slurm before 23.02
        start, end = (datetime.fromisoformat(job[key]).timestamp() for key in ("StartTime", "EndTime"))
    except (KeyError, ValueError):
        return None
    return start, end


def fate(job: Mapping[str, str]) -> Fate:
    """What becomes of a job (as `this_job` shows it) whose batch script ends now.

    A grace time begins with PreemptTime; Slurm may mark the job then, and the mark stays until Slurm itself
    has requeued a job that ended with it. `scontrol requeue` leaves it: the end of the *next* start would be
    taken for the preemption's. So within a grace time a job is to end, and be it for another to go on.
    """
    if job.get("JobState") != "RUNNING" or "PreemptTime" not in job:
        return "own"
    config = configuration()
    if version(config) < MARKS_GRACE:
        return "own"
    shown = call(["scontrol", "show", "partition", "-o", job.get("Partition", "")])
    mode = re.search(r"\bPreemptMode=(\S+)", shown.text)
    if mode and "SUSPEND" in mode[1]:
        return "own"  # it has a PreemptTime, too, but neither grace nor mark
    # A level of service may say otherwise than the partition; and one requeue too many holds the job.
    by_partition = config.get("PreemptType") == "preempt/partition_prio"
    requeues = job.get("Requeue") == "1" and by_partition and mode is not None and "REQUEUE" in mode[1]
    left = _number(config.get("MaxBatchRequeue"), 5) - _number(job.get("BatchFlag"), 1)
    return "requeued" if requeues and left > 0 else "preempted"


def configuration() -> dict[str, str]:
    """`scontrol show config`, key by key; {} when it cannot be asked."""
    lines = call(["scontrol", "show", "config"]).text.splitlines()
    pairs = (line.partition("=") for line in lines)
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def version(config: Mapping[str, str]) -> tuple[int, int]:
    """(major, minor) of the controller, as (24, 11); (0, 0) where the configuration does not say."""
    found = re.match(r"(\d+)\.(\d+)", config.get("SLURM_VERSION", ""))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def forbid_requeue(job: str) -> Answer:
    """Keeps Slurm from requeueing `job` (see `slurm_id`) when it ends."""
    return call(["scontrol", "update", f"JobId={job}", "Requeue=0"])


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isdigit() else default
