"""A job's own word on its failure, for whoever waits for it: on Slurm nobody else gives one."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

from jobs.run import events, exit_codes
from jobs.run.directory import Run
from jobs.run.errors import UserError
from jobs.run.task import job_id


@contextlib.contextmanager
def reported(run: Run, stage: str, rank: int | None = None) -> Iterator[None]:
    """Appends `failed` to the run's events if the body raises, and lets the error go on."""
    try:
        yield
    except Exception as error:
        code = exit_codes.USER_ERROR if isinstance(error, UserError) else exit_codes.FAILED
        last = traceback.format_exception_only(error)[-1].strip()
        tell(run, stage, str(error) if code == exit_codes.USER_ERROR else last, code, rank)
        raise


def tell(run: Run, stage: str, reason: str, code: int, rank: int | None = None) -> None:
    """Appends `failed` to the events of a run that is there."""
    if run.path.is_dir():
        events.append(
            run.events, "failed", stage=stage, job=job_id(), rank=rank, exit_code=code,
            reason=" ".join(reason.split()),
        )  # fmt: skip
