"""What runs the jobs: Slurm, this machine, or whatever another module in this folder talks to.

Each module here is an executor, selected by `executor: NAME` in a profile, and has what `Executor` lists
(docs/contributing.md). It imports libraries only when they are needed: most commands just look at jobs.
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
"""Job id by stage, and the process to wait for if this command has started one."""


class Executor(Protocol):
    BATCH_SCRIPTS: bool
    """Whether it submits the batch scripts in a run's `job/`, which must be written first."""

    def is_here(self) -> bool:
        """Whether it can be reached from this machine."""

    def check(self, resolved: Resolved) -> None:
        """Raises UserError for settings that it cannot provide; adds to `resolved.hints`."""

    def wait_behind(self, job: str, holder: bool, arguments: list[str], prerequisites: Prerequisites) -> bool:
        """Notes in `prerequisites` that what is submitted next waits for a preparation: for `job`, or, if
        `holder`, for the holder of the data root's lock. `arguments`: of that preparation. Returns False if
        it cannot be waited for."""

    def submit(
        self, made: Sequence[Run], batches: Sequence[Batch], prerequisites: Prerequisites
    ) -> list[Submitted]:
        """Submits the batches of each run, each behind the one before, and appends the events `submitted`.
        Several runs are the elements of one sweep.

        Raises UserError, and then nothing is queued.
        """

    def shown(self, batches: Sequence[Batch]) -> str:
        """What it would run."""

    def by_hand(self, made: Sequence[Run]) -> str:
        """The command that submits runs that were only made; several are the elements of one sweep."""

    def owns(self, job: str) -> bool:
        """Whether a job id from an event is one of its own."""

    def is_alive(self, run: Run, job: str) -> bool:
        """Whether a job is queued or running; True also if that cannot be determined from here."""

    def end(self, run: Run, jobs: Sequence[str]) -> None:
        """Makes jobs save and exit; a job that has already ended is not an error. Raises UserError."""


@functools.cache
def names() -> list[str]:
    return sorted((path.stem for path in Path(__file__).parent.glob("[a-z]*.py")), reverse=True)


def named(name: str) -> Executor:
    """The executor of that name. Raises UserError for an unknown one, as in another version's run.yaml."""
    if name not in names():
        raise UserError(f"there is no executor {name!r}: there are {', '.join(names())}")
    return cast(Executor, importlib.import_module(f"{__name__}.{name}"))


def of_job(job: str) -> Executor | None:
    return next((executor for executor in map(named, names()) if executor.owns(job)), None)
