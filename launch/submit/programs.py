"""The names, in a run's own code, of the programs that its jobs start.

A run that is submitted again uses the code that it was made with (RUN/code), which may be older than this
checkout.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from jobs.run.directory import Run
from jobs.run.errors import UserError

CHAIN = "jobs.supervise.local"
AFTER_TRAINING = "jobs.supervise.afterwards"
AFTER_OTHERS = "jobs.slurm.afterwards"

BEFORE = {CHAIN: "jobs.local", AFTER_TRAINING: "jobs.train.afterwards", AFTER_OTHERS: "jobs.slurm"}
"""Their names until November 2026."""


def module(code: Path | None, name: str) -> str:
    """The name that today's module `name` has in the snapshot `code`; None means today's code."""
    before = BEFORE[name]
    old = code is not None and has(code, before)
    return before if old else name


def has(code: Path, name: str) -> bool:
    """Whether the snapshot `code` has the module `name`."""
    return (code / name.replace(".", "/")).with_suffix(".py").is_file()


def knows(code: Path | None, name: str) -> bool:
    """Whether a run's code has the module `name`; one that is still to be made gets today's code."""
    return code is None or not code.is_dir() or has(code, name)


def check_there(run: Run) -> None:
    """Raises UserError if the run's own code is gone."""
    jobs = run.code / "jobs"
    if not jobs.is_dir():
        raise UserError(
            f"{jobs} is gone, but the jobs of {run.name} run that code: put it back, or make a new run"
        )


def require(run: Run, part: str, what: str) -> None:
    """Raises UserError if the run's own code is too old for `what`: it lacks `part`, a path in it."""
    check_there(run)
    if not (run.code / part).exists():
        raise UserError(
            f"{run.name} continues with the code that it was made with, which does not know {what} yet "
            f"({run.code / part} is missing)"
        )


def run_chain(module: str, run: str, stages: list[dict[str, Any]]) -> int:
    """In the job, in RUN/code: runs the stages (fields of jobs.run.stages.Stage) one after the other."""
    program = importlib.import_module(module)
    code: int = program.chain(run, [program.Stage(**stage) for stage in stages])
    return code
