"""What a run on one machine without Slurm consists of; jobs/supervise/local.py runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAVING = ("prepare", "train", "infer")
"""Stages that leave when they are told to (SIGUSR2), and go on where they were in another start; the others
would die of it, with nothing saved."""


@dataclass(frozen=True)
class Stage:
    name: str
    """prepare, train or evaluate, as in events."""
    command: Sequence[str]
    """What each task runs, as srun would."""
    tasks: int = 1
    gpus: int | None = None
    """How many GPUs the stage gets to see, where the machine has any. None: one a task, none to prepare."""

    def wanted_gpus(self) -> int:
        if self.gpus is not None:
            return self.gpus
        return 0 if self.name == "prepare" else self.tasks
