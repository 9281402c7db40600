"""Slurm's commands as the login node calls them: a failure is an error with Slurm's own message."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Collection

from jobs.run.errors import UserError
from jobs.slurm import commands

PATIENCE = 90.0
"""Seconds for which a call is retried while the controller does not answer."""

OLDEST = (20, 11)
"""The oldest supported Slurm version."""


class SlurmError(UserError):
    """A Slurm command failed; the text is Slurm's own message, in one line."""

    def __init__(self, message: str, unanswered: bool = False) -> None:
        super().__init__(message)
        self.unanswered = unanswered
        """Whether the controller may have done what was asked without an answer."""


def call(
    *command: str, patience: float = PATIENCE, changes: bool = False, without: Collection[str] = ()
) -> str:
    """Runs a Slurm command and returns its standard output.

    While the controller is away, the call is retried for `patience` seconds, which standard error says.
    `changes`: the command changes something, so it is not retried if the answer got lost.
    `without`: environment variables that the command must not see.

    Raises SlurmError with Slurm's message, also if the command is missing.
    """
    answer = commands.run(
        command,
        {key: value for key, value in clean_environment().items() if key not in without},
        patience=patience,
        limit=commands.SBATCH_SECONDS if changes else max(patience, 60),
        again=not changes,
        say=lambda text: print(text, file=sys.stderr),
        every=15.0,
    )
    if not answer.ok:
        raise SlurmError(answer.text, answer.unanswered)
    if changes and answer.errors:  # messages of the site to its users, such as the partition that it chose
        print(answer.errors.strip(), file=sys.stderr)
    return answer.text


def require() -> None:
    """Raises SlurmError if submitted jobs could not run: this Slurm is incomplete, or too old."""
    if shutil.which("srun") is None:
        raise SlurmError(
            "sbatch is on PATH but srun is not, so a job could not start its tasks: put the folder of "
            "Slurm's programs on PATH (such as by module load slurm), or use --cluster local"
        )
    version = re.search(r"^slurm\S* (\d+)\.(\d+)", call("srun", "--version"), re.MULTILINE)
    if version and (int(version[1]), int(version[2])) < OLDEST:
        raise SlurmError(
            f"{version[0]} is too old: Baton needs Slurm {OLDEST[0]}.{OLDEST[1]} or later; ask for an "
            "update, or use --cluster local"
        )


def clean_environment() -> dict[str, str]:
    """The environment without the variables of a surrounding job.

    Inside an `salloc` shell, that allocation's variables (SLURM_MEM_PER_CPU and so on) would become options
    of the new job and contradict its own.
    """
    kept = {
        key: value
        for key, value in os.environ.items()
        if key in commands.WHERE or not key.startswith(("SLURM_", "SLURMD_", "SUBMITIT_", "PMI_"))
    }
    chosen = commands.chosen_cluster()
    return kept | {"SLURM_CLUSTERS": chosen} if chosen else kept
