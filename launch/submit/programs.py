"""How a run's own code calls the programs that its jobs start.

A run that is submitted again goes on with the code that it was made with (RUN/code), which may be older than
this checkout.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

CHAIN = "jobs.supervise.local"
AFTER_TRAINING = "jobs.supervise.afterwards"
AFTER_OTHERS = "jobs.slurm.afterwards"

BEFORE = {CHAIN: "jobs.local", AFTER_TRAINING: "jobs.train.afterwards", AFTER_OTHERS: "jobs.slurm"}
"""What these were called until November 2026."""


def module(code: Path | None, name: str) -> str:
    """The module that is `name` today, as the snapshot `code` calls it; None: as today."""
    before = BEFORE[name]
    old = code is not None and (code / before.replace(".", "/")).with_suffix(".py").is_file()
    return before if old else name


def run_chain(module: str, run: str, stages: list[dict[str, Any]]) -> int:
    """In the job, in RUN/code: runs the stages (fields of jobs.run.stages.Stage) one after the other."""
    program = importlib.import_module(module)
    code: int = program.chain(run, [program.Stage(**stage) for stage in stages])
    return code
