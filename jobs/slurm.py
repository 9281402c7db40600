"""Slurm's commands as jobs call them: argument lists, never a shell; patient with a controller that is away.

`python -m jobs.slurm requeue`: what the batch script of a preparation, evaluation or inference does when its
tasks were told to leave and have more to do.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from jobs.errors import run_command

PATIENCE = 600.0
"""Seconds that a call goes on trying while the controller does not answer: it may be restarting, failing over
or being upgraded, and giving up would end a run that has days to go."""
COMMAND_SECONDS = 120.0
"""A command that says nothing for so long has lost its controller."""

# The controller never got the request.
NOT_REACHED = re.compile(
    r"Unable to contact slurm controller|Connection refused|connect failure", re.IGNORECASE
)
# The request may have arrived.
NO_ANSWER = re.compile(
    r"Socket timed out|Zero Bytes were transmitted|Unexpected message received|gave no answer", re.IGNORECASE
)


@dataclass(frozen=True)
class Answer:
    ok: bool
    text: str
    """Standard output; of a failure Slurm's message, in one line."""

    @property
    def unanswered(self) -> bool:
        """The controller may have done what was asked, without saying so."""
        return not self.ok and bool(NO_ANSWER.search(self.text))


def call(command: Sequence[str], env: Mapping[str, str] | None = None, *, again: bool = True) -> Answer:
    """Runs one of Slurm's commands; never raises, since there is always another way to try.

    While the controller is away it is tried again for PATIENCE seconds. Without `again` (what must not be
    done twice), only if the controller cannot have got the request.
    """
    give_up = time.monotonic() + PATIENCE
    pause, told = 0.5, False
    while True:
        answer = _once(command, env)
        away = not answer.ok and (NOT_REACHED.search(answer.text) or (again and answer.unanswered))
        if not away or time.monotonic() + pause > give_up:
            return answer
        if not told:
            print(f"baton: {answer.text}; trying for {PATIENCE:.0f} s", flush=True)
            told = True
        time.sleep(pause)  # the only sign of its return is an answer
        pause = min(pause * 1.5, 10.0)


def _once(command: Sequence[str], env: Mapping[str, str] | None) -> Answer:
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", timeout=COMMAND_SECONDS,
            stdin=subprocess.DEVNULL, check=False, env=env,
        )  # fmt: skip
    except FileNotFoundError:
        return Answer(False, f"there is no {command[0]} on this node")
    except subprocess.TimeoutExpired:
        return Answer(False, f"{command[0]} gave no answer for {COMMAND_SECONDS:.0f} s")
    if done.returncode == 0:
        return Answer(True, done.stdout.strip())
    return Answer(False, " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}")


def this_job() -> dict[str, str]:
    """What `scontrol show job` says of the job this process belongs to, field by field; {} outside of Slurm
    or when it cannot be asked. Of a field that names several things (ReqB:S:C:T) all is one name."""
    job = os.environ.get("SLURM_JOB_ID")
    command = ["scontrol", "show", "job", "-o", job or ""]
    answer = call(command, os.environ | {"SLURM_TIME_FORMAT": "standard"}) if job else Answer(False, "")
    lines = answer.text.splitlines()
    # A name or a path may hold spaces: a value ends where the next field begins.
    pattern = r"([A-Z][\w/:]*)=(.*?)(?=\s+[A-Z][\w/:]*=|\s*$)"
    fields = dict(re.findall(pattern, lines[0])) if answer.ok and lines else {}
    return {name: value for name, value in fields.items() if value not in ("(null)", "N/A", "None", "")}


def state() -> str:
    """Slurm's state of this job, such as RUNNING; UNKNOWN outside of Slurm or when it cannot be asked."""
    return this_job().get("JobState", "UNKNOWN")


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


def main() -> int:
    if sys.argv[1:] != ["requeue"]:
        print("usage: python -m jobs.slurm requeue", file=sys.stderr)
        return 2
    # A job that Slurm has requeued itself comes back, and one that is being cancelled does not.
    if state() != "RUNNING":
        return 0
    answer = call(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])
    if not answer.ok:
        print(f"error: the job could not be requeued: {answer.text}", file=sys.stderr)
    return 0 if answer.ok else 1


if __name__ == "__main__":
    run_command(main)
