"""The process that submits a successor in advance, when a signal says that the job's end is near."""

from __future__ import annotations

import os
import shutil
import sys

from jobs.run.directory import Run
from jobs.supervise import processes

SECONDS = 60.0
"""How long the end of this start waits for it."""


class Reserve:
    def __init__(self, run: Run) -> None:
        self.run = run
        # Inside a container there may be no Slurm.
        self.submits = "SLURM_JOB_ID" in os.environ and shutil.which("sbatch") is not None
        self.pids: set[int] = set()
        """The process's pid, while it is alive."""
        self.until: float | None = None

    def submit(self) -> None:
        """Submits a successor, because at the end of the job's time a save may take longer than the time
        left. In a separate process, since Slurm may be slow to answer."""
        if self.submits and not self.pids:
            command = [sys.executable, "-m", "jobs.supervise.afterwards", str(self.run.path)]
            self.pids.add(processes.start([*command, "--presubmit", "--if-ending"], os.environ))

    def is_awaited(self, now: float) -> bool:
        """Whether to wait for it: the successor must be recorded before the batch script looks for it."""
        if self.until is None:
            self.until = now + SECONDS
        return bool(self.pids) and now < self.until
