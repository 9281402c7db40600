"""A job's own report of its failure, for whoever waits for it: on Slurm there is no other."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from jobs.run import events, exit_codes
from jobs.run.directory import Run
from jobs.run.errors import REFUSED, UserError, described, in_a_line, refusal
from jobs.run.task import job_id


@contextlib.contextmanager
def reported(run: Run, stage: str, rank: int | None = None) -> Iterator[None]:
    """Appends `failed` to the run's events if the body raises, and re-raises; as a one-line UserError if a
    disk or a file's owner refused something, or for a SystemExit."""
    try:
        yield
    except UserError as error:
        tell(run, stage, str(error), exit_codes.USER_ERROR, rank)
        raise
    except SystemExit as end:  # from the user's own code: it would count as success, or say nothing
        told = UserError(in_a_line(end))
        tell(run, stage, str(told), exit_codes.USER_ERROR, rank)
        raise told from end
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSED and error.filename is not None:
            told = UserError(f"{refusal(error)}: fix that, and start again")
            tell(run, stage, str(told), exit_codes.USER_ERROR, rank)
            raise told from None
        tell(run, stage, described(error), exit_codes.FAILED, rank)
        raise


def tell(run: Run, stage: str, reason: str, code: int, rank: int | None = None) -> None:
    """Appends `failed` to the events of a run that exists."""
    if run.path.is_dir():
        with unhindered():
            events.append(
                run.events, "failed", stage=stage, job=job_id(), rank=rank, exit_code=code,
                reason=" ".join(reason.split()),
            )  # fmt: skip


@contextlib.contextmanager
def unhindered() -> Iterator[None]:
    """For recording an error: an OSError in the body, such as a full disk, is printed and not raised."""
    try:
        yield
    except OSError as error:
        print(f"it could not be noted: {refusal(error)}", file=sys.stderr)
