"""The stages of a run on one machine without Slurm; jobs/supervise/local.py runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAVING = ("prepare", "train", "infer")
"""Stages that exit when told to (SIGUSR2), and continue from there at another start; it would kill the
others, with nothing saved."""


@dataclass(frozen=True)
class Stage:
    name: str
    """The stage's name, as in events."""
    command: Sequence[str]
    """The command of each task, as for srun."""
    tasks: int = 1
    gpus: int | None = None
    """GPUs visible to the stage, where the machine has any. None: one per task, none for prepare."""

    def wanted_gpus(self) -> int:
        if self.gpus is not None:
            return self.gpus
        return 0 if self.name == "prepare" else self.tasks
