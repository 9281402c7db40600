"""Who runs the jobs: Slurm, this machine, or whatever another module in this folder speaks to.

A module here is an executor, which `executor: NAME` in a profile asks for, and has what `Executor` lists
(docs/contributing.md). It imports libraries when they are needed: most commands only look at jobs.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from jobs.run.directory import Run
from jobs.run.errors import UserError

if TYPE_CHECKING:
    from launch.submit.batch_script import Batch
    from launch.submit.data_ready import Prerequisites
    from launch.submit.profiles import Resolved

Submitted = tuple[dict[str, str], Any]
"""Each stage's job id; and the process to wait for, if this command has started one."""


class Executor(Protocol):
    BATCH_SCRIPTS: bool
    """Whether it takes the batch scripts in a run's `job/`, which must be written before."""

    def is_here(self) -> bool:
        """Whether it can be reached from this machine."""

    def check(self, resolved: Resolved) -> None:
        """Raises UserError for what it cannot give to a job; adds to `resolved.hints`."""

    def wait_behind(self, job: str, holder: bool, arguments: list[str], prerequisites: Prerequisites) -> bool:
        """Notes in `prerequisites` that what is submitted next waits for a preparation: for `job`, or for
        whoever is the `holder` of the data root's lock. `arguments`: its own. False if nothing can wait for
        it."""

    def submit(
        self, made: Sequence[Run], batches: Sequence[Batch], prerequisites: Prerequisites
    ) -> list[Submitted]:
        """Submits the batches of each run, each behind the one before, and appends the events `submitted`.
        Of several runs they are elements of one sweep.

        Raises UserError; then nothing is queued.
        """

    def shown(self, batches: Sequence[Batch]) -> str:
        """What it would run."""

    def by_hand(self, made: Sequence[Run]) -> str:
        """The command that submits runs which were only made; several are the elements of one sweep."""

    def owns(self, job: str) -> bool:
        """Whether a job id, as in events, is one of its own."""

    def is_alive(self, run: Run, job: str) -> bool:
        """Whether a job is queued or running; what cannot be seen from here may be."""

    def end(self, run: Run, jobs: Sequence[str]) -> None:
        """Has jobs save and leave; one that has ended meanwhile is no error. Raises UserError."""


@functools.cache
def names() -> list[str]:
    return sorted((path.stem for path in Path(__file__).parent.glob("[a-z]*.py")), reverse=True)


def named(name: str) -> Executor:
    """Raises UserError for a name that is none, such as one in another version's run.yaml."""
    if name not in names():
        raise UserError(f"there is no executor {name!r}: there are {', '.join(names())}")
    return cast(Executor, importlib.import_module(f"{__name__}.{name}"))


def of_job(job: str) -> Executor | None:
    return next((executor for executor in map(named, names()) if executor.owns(job)), None)
