"""The one caller of Slurm's commands: argument lists, never a shell; waits for a controller."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# The controller never got the request, so asking again is safe whatever the command.
NOT_REACHED = re.compile(
    r"Unable to contact slurm controller|Connection refused|connect failure", re.IGNORECASE
)
# Nor has it taken a job then (MaxJobCount): sbatch has tried for two minutes.
FULL = re.compile(r"temporarily unable to accept job|job queue full", re.IGNORECASE)
SBATCH_SECONDS = 150.0
"""sbatch has said all that it can by then."""
# The request may have arrived; only a command that changes nothing may be asked again blindly.
NO_ANSWER = re.compile(
    r"Socket timed out|Zero Bytes were transmitted|Unexpected message received|gave no answer", re.IGNORECASE
)

WHERE = ("SLURM_CONF", "SLURM_CONF_SERVER")
"""Variables that say where Slurm is, of a shell as of a job."""
CHOSEN = ("SLURM_CLUSTERS", "SBATCH_CLUSTERS")
"""Variables by which a user chooses another cluster than this machine's; sbatch lets the first win."""
# A user's filters, formats and questions (SQUEUE_PARTITION, SLURM_TIME_FORMAT, SCANCEL_INTERACTIVE: without a
# terminal that one asks for ever) are for a user's eyes.
FOR_EYES = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN")


def chosen_cluster() -> str:
    """The cluster that a user has chosen for sbatch, and so for all that is asked of its jobs; "" if none."""
    return next(filter(None, map(os.environ.get, CHOSEN)), "")


def job_number(text: str) -> str | None:
    """The job's number in what `sbatch --parsable` says, beside which a site's own sbatch may say more."""
    named = re.findall(r"^(\d+)(?:;.*)?$", text, re.MULTILINE)
    return named[-1] if named else None


def nameless(text: str) -> str:
    """What is said of an answer of sbatch's without a job's number."""
    return f"sbatch's answer names no job: {' '.join(text.split())!r}"


@dataclass(frozen=True)
class Answer:
    ok: bool
    text: str
    """Standard output; of a failure Slurm's message, in one line."""
    errors: str = ""
    """Standard error of a command that did what it was asked."""

    @property
    def unanswered(self) -> bool:
        """The controller may have done what was asked, without saying so."""
        return not self.ok and bool(NO_ANSWER.search(self.text))


def run(
    command: Sequence[str],
    env: Mapping[str, str] | None,
    *,
    patience: float,
    limit: float,
    again: bool,
    say: Callable[[str], None],
    every: float,
) -> Answer:
    """Runs one of Slurm's commands, for `limit` seconds at most; never raises.

    While the controller is away it is tried again for `patience` seconds, and `say` hears so every
    `every` seconds. Without `again` (what must not be done twice), only if the controller cannot have got
    the request.
    """
    begin = time.monotonic()
    pause, next_word = 0.5, begin
    while True:
        answer = once(command, env, limit)
        # Of the tries that sbatch makes itself, one may have arrived after one that was refused.
        refused = not (answer.ok or answer.unanswered)
        full = refused and FULL.search(answer.text)
        away = full or (refused and NOT_REACHED.search(answer.text)) or (again and answer.unanswered)
        now = time.monotonic()
        if not away or now + pause > begin + patience:
            return answer
        if now >= next_word:
            since = f" since {next_word - begin:.0f} s" if next_word > begin else ""
            why = "takes no more jobs" if full else "does not answer"
            say(f"Slurm's controller {why}{since}; trying for {patience:.0f} s …")
            next_word += every
        time.sleep(pause)  # the only sign of its return is an answer
        pause = min(pause * 1.5, 5.0)


def once(command: Sequence[str], env: Mapping[str, str] | None, limit: float) -> Answer:
    """As `run`, but tried once."""
    if command[0] != "sbatch":  # whose environment is the job's
        given = os.environ if env is None else env
        env = {name: value for name, value in given.items() if not name.startswith(FOR_EYES)}
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", timeout=limit,
            stdin=subprocess.DEVNULL, check=False, env=env,
        )  # fmt: skip
    except FileNotFoundError:
        return Answer(False, f"{command[0]} is not on PATH")
    except subprocess.TimeoutExpired:
        return Answer(False, f"{command[0]} gave no answer for {limit:.0f} s")
    if done.returncode == 0:
        return Answer(True, done.stdout, done.stderr)
    return Answer(False, " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}")
