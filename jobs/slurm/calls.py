"""Slurm's commands as jobs call them, and what Slurm will do with a job that ends now (`fate`)."""

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
"""Seconds for which a call is retried while the controller does not answer: it may be restarting, failing
over or being upgraded, and giving up would end a run that has days to go."""
COMMAND_SECONDS = commands.SBATCH_SECONDS
"""Seconds without an answer after which a command has lost its controller."""
MARKS_GRACE = (24, 5)
"""The first Slurm that treats a job's end within its grace time as a preemption ("assume that job signalled
for GraceTime was preempted", its NEWS). No field of the job shows that mark."""

Fate = Literal["own", "requeued", "preempted"]
"""What Slurm does with a job that ends now. own: goes by its exit code. Regardless of that: requeued, or
preempted for good, which is not a success for dependent jobs."""


def call(command: Sequence[str], env: Mapping[str, str] | None = None, *, again: bool = True) -> Answer:
    """Runs one of Slurm's commands; never raises, since there is always another way to try.

    While the controller is away, it is retried for PATIENCE seconds. Without `again` (for what must not be
    done twice), only if the controller cannot have received the request.
    """
    answer = commands.run(
        command, env, patience=PATIENCE, limit=COMMAND_SECONDS, again=again,
        say=lambda text: print(f"baton: {text}", flush=True), every=120.0,
    )  # fmt: skip
    return dataclasses.replace(answer, text=answer.text.strip())


def this_job() -> dict[str, str]:
    """The fields of `scontrol show job` for the job that this process belongs to; {} outside of Slurm or if
    it cannot be asked. A combined field (ReqB:S:C:T) keeps its whole name."""
    job = slurm_id()
    answer = call(["scontrol", "show", "job", "-o", job]) if job else Answer(False, "")
    lines = answer.text.splitlines()
    # A name or path may have spaces: a value ends where the next field begins.
    pattern = r"([A-Z][\w/:]*)=(.*?)(?=\s+[A-Z][\w/:]*=|\s*$)"
    # The first field of a name counts: the submit line, which may contain lookalikes, comes late.
    fields = dict(reversed(re.findall(pattern, lines[0]))) if answer.ok and lines else {}
    return {name: value for name, value in fields.items() if value not in ("(null)", "N/A", "None", "")}


def state() -> str:
    """Slurm's state of this job, such as RUNNING; UNKNOWN outside of Slurm or if it cannot be asked."""
    return this_job().get("JobState", "UNKNOWN")


def is_cancelled(job: Mapping[str, str]) -> bool:
    """Whether somebody has cancelled this job; `job` is from `this_job`.

    A job that was ended is COMPLETING while any of its processes are alive, whatever the reason. Slurm
    accepts an update of one that it has requeued, but not of one that is over; and the latter, if not
    cancelled by scancel, has a reason.
    """
    if job.get("JobState") != "COMPLETING":
        return job.get("JobState") == "CANCELLED"
    if "PreemptTime" in job or "Reason" in job:
        return False
    answer = call(["scontrol", "update", f"JobId={slurm_id()}", f"Requeue={job.get('Requeue', '1')}"])
    return not answer.ok and "already finished" in answer.text


def span() -> tuple[float, float] | None:
    """(start, end by its time limit) of this job in seconds since the epoch; None outside of Slurm or if it
    cannot be asked. Call it early: a job that is being preempted gets another end time."""
    try:
        if "SLURM_JOB_END_TIME" in os.environ:
            return float(os.environ["SLURM_JOB_START_TIME"]), float(os.environ["SLURM_JOB_END_TIME"])
        job = this_job()  # Slurm before 23.02
        start, end = (datetime.fromisoformat(job[key]).timestamp() for key in ("StartTime", "EndTime"))
    except (KeyError, ValueError):
        return None
    return start, end


def fate(job: Mapping[str, str]) -> Fate:
    """What will happen to a job (as from `this_job`) whose batch script ends now.

    A grace time begins at PreemptTime; Slurm may then mark the job, and the mark stays until Slurm itself has
    requeued a job that ended with it. `scontrol requeue` keeps it: the end of the *next* start would count as
    the preemption. So within a grace time a job has to end, even if another job must then continue.
    """
    if job.get("JobState") != "RUNNING" or "PreemptTime" not in job:
        return "own"
    config = configuration()
    if version(config) < MARKS_GRACE:
        return "own"
    shown = call(["scontrol", "show", "partition", "-o", job.get("Partition", "")])
    mode = re.search(r"\bPreemptMode=(\S+)", shown.text)
    if mode and "SUSPEND" in mode[1]:
        return "own"  # it has a PreemptTime, too, but no grace time and no mark
    # A QOS may differ from the partition; and after too many requeues, the job is held.
    by_partition = config.get("PreemptType") == "preempt/partition_prio"
    requeues = job.get("Requeue") == "1" and by_partition and mode is not None and "REQUEUE" in mode[1]
    left = _number(config.get("MaxBatchRequeue"), 5) - _number(job.get("BatchFlag"), 1)
    return "requeued" if requeues and left > 0 else "preempted"


def configuration() -> dict[str, str]:
    """The keys of `scontrol show config`; {} if it cannot be asked."""
    lines = call(["scontrol", "show", "config"]).text.splitlines()
    pairs = (line.partition("=") for line in lines)
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def version(config: Mapping[str, str]) -> tuple[int, int]:
    """(major, minor) of the controller's version, such as (24, 11); (0, 0) if `config` does not say."""
    found = re.match(r"(\d+)\.(\d+)", config.get("SLURM_VERSION", ""))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def forbid_requeue(job: str) -> Answer:
    """Keeps Slurm from requeueing `job` (see `slurm_id`) when it ends."""
    return call(["scontrol", "update", f"JobId={job}", "Requeue=0"])


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isdigit() else default
