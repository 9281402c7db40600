"""Calls of Slurm's commands: argument lists, never a shell; patient with a controller that is away."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Collection

from jobs.run.errors import UserError

PATIENCE = 90.0
"""Seconds that a call goes on trying while the controller does not answer."""

SAY_SECONDS = 15.0
"""How often it says that it is trying yet."""

# The controller never got the request, so asking again is safe whatever the command.
NOT_REACHED = ("Unable to contact slurm controller", "Connection refused", "connect failure")
# The request may have arrived; only a command that changes nothing may be asked again blindly.
NO_ANSWER = ("Socket timed out", "Zero Bytes were transmitted", "Unexpected message received")


OLDEST = (20, 11)
"""The first Slurm that has all that jobs here ask of it."""


class SlurmError(UserError):
    """A Slurm command failed; the text is Slurm's own message, in one line."""

    def __init__(self, message: str, unanswered: bool = False) -> None:
        super().__init__(message)
        self.unanswered = unanswered
        """The controller may have done what was asked, without saying so."""


def call(
    *command: str, patience: float = PATIENCE, changes: bool = False, without: Collection[str] = ()
) -> str:
    """Runs a Slurm command and returns its standard output.

    While the controller is away the call is repeated for `patience` seconds, and stderr says so.
    `changes`: the command changes something, so it is not repeated when the answer got lost.
    `without`: variables that the command must not see.

    Raises SlurmError with Slurm's message; also if the command is missing.
    """
    begin = time.monotonic()
    give_up = begin + patience
    pause, tell = 0.5, begin
    while True:
        try:
            done = subprocess.run(
                command,
                env={key: value for key, value in clean_environment().items() if key not in without},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=max(patience, 60),
                check=False,
            )
        except FileNotFoundError:
            raise SlurmError(f"{command[0]} is not on PATH") from None
        except subprocess.TimeoutExpired:
            raise SlurmError(f"{command[0]} gave no answer in {max(patience, 60):.0f} s", True) from None
        if done.returncode == 0:
            return done.stdout
        message = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        unanswered = any(sign in message for sign in NO_ANSWER)
        away = any(sign in message for sign in NOT_REACHED) or (unanswered and not changes)
        if not away or time.monotonic() + pause > give_up:
            raise SlurmError(message, unanswered)
        if time.monotonic() >= tell:
            since = f" since {tell - begin:.0f} s" if tell > begin else ""
            print(
                f"Slurm's controller does not answer{since}; trying for {patience:.0f} s …", file=sys.stderr
            )
            tell += SAY_SECONDS
        time.sleep(pause)  # the only sign of its return is an answer
        pause = min(pause * 1.5, 5.0)


def require() -> None:
    """Raises SlurmError where a job that is submitted could not run: this Slurm is not whole, or too old."""
    if shutil.which("srun") is None:
        raise SlurmError(
            "sbatch is on PATH, srun is not: a job could not start its tasks. Put the folder of Slurm's "
            "programs on PATH (module load slurm, say), or use --cluster local"
        )
    version = re.search(r"^slurm\S* (\d+)\.(\d+)", call("srun", "--version"), re.MULTILINE)
    if version and (int(version[1]), int(version[2])) < OLDEST:
        raise SlurmError(
            f"{version[0]} is too old: jobs here need Slurm {OLDEST[0]}.{OLDEST[1]} or later; "
            "ask for an update, or use --cluster local"
        )


def clean_environment() -> dict[str, str]:
    """The environment without what a surrounding job put there.

    Inside an `salloc` shell the variables of that allocation (SLURM_MEM_PER_CPU and so on) would become
    options of the new job and contradict its own.
    """
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
    return {
        key: value
        for key, value in os.environ.items()
        if key in kept or not key.startswith(("SLURM_", "SLURMD_", "SUBMITIT_", "PMI_"))
    }
