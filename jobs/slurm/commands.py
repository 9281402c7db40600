"""The only caller of Slurm's commands: argument lists, never a shell; waits for the controller."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# The controller never got the request, so a retry is safe for any command.
NOT_REACHED = re.compile(
    r"Unable to contact slurm controller|Connection refused|connect failure", re.IGNORECASE
)
# The controller has not accepted the job then either (MaxJobCount): sbatch has tried for two minutes.
FULL = re.compile(r"temporarily unable to accept job|job queue full", re.IGNORECASE)
SBATCH_SECONDS = 150.0
"""Seconds after which sbatch has given up its own retries."""
# The request may have arrived, so only a command that changes nothing can be retried blindly.
NO_ANSWER = re.compile(
    r"Socket timed out|Zero Bytes were transmitted|Unexpected message received|gave no answer", re.IGNORECASE
)

WHERE = ("SLURM_CONF", "SLURM_CONF_SERVER")
"""Variables that say where Slurm is, in a shell as in a job."""
CHOSEN = ("SLURM_CLUSTERS", "SBATCH_CLUSTERS")
"""Variables with which a user chooses another cluster than this machine's; for sbatch the first one wins."""
# A user's filters, formats and prompts (SQUEUE_PARTITION, SLURM_TIME_FORMAT, SCANCEL_INTERACTIVE, which
# without a terminal prompts for ever) are for interactive use.
FOR_EYES = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN")


def chosen_cluster() -> str:
    """The cluster that a user has chosen for sbatch, and so for all queries about its jobs; "" if none."""
    return next(filter(None, map(os.environ.get, CHOSEN)), "")


def job_number(text: str) -> str | None:
    """The job id in the output of `sbatch --parsable`, to which a site's sbatch may add; None without one."""
    named = re.findall(r"^(\d+)(?:;.*)?$", text, re.MULTILINE)
    return named[-1] if named else None


def nameless(text: str) -> str:
    """The message about an answer of sbatch's that has no job id."""
    return f"sbatch's answer names no job: {' '.join(text.split())!r}"


@dataclass(frozen=True)
class Answer:
    ok: bool
    text: str
    """Standard output; after a failure Slurm's message, in one line."""
    errors: str = ""
    """Standard error of a command that succeeded."""

    @property
    def unanswered(self) -> bool:
        """Whether the controller may have done what was asked without an answer."""
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
    """Runs one of Slurm's commands, for at most `limit` seconds each time; never raises.

    While the controller is away, it is retried for `patience` seconds, and `say` is told so every `every`
    seconds. Without `again` (for what must not be done twice), only if the controller cannot have received
    the request.
    """
    begin = time.monotonic()
    pause, next_word = 0.5, begin
    while True:
        answer = once(command, env, limit)
        # Of sbatch's own retries, one may have arrived after another was refused.
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
        time.sleep(pause)  # only an answer shows that it is back
        pause = min(pause * 1.5, 5.0)


def once(command: Sequence[str], env: Mapping[str, str] | None, limit: float) -> Answer:
    """As `run`, but tried once."""
    if command[0] != "sbatch":  # sbatch's environment becomes the job's
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
