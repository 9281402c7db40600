"""How a command begins and ends, whatever its standard output is: a terminal, a pipe, a full disk, closed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

from jobs.run.directory import Run
from jobs.run.errors import run_command
from launch.observe import tables

UNWRITABLE = 74
"""Exit code of a command that did what it should and could not print it (sysexits.h: EX_IOERR)."""

DONE: list[str] = []
"""What this command has done that is not to be done twice, for one who cannot read it on its output."""


def run(main: Callable[[], int | None]) -> None:
    """As `run_command`, with output that is safe for a terminal."""
    tables.guard()
    run_command(lambda: _ended(main))


def submitted(run: Run, jobs: dict[str, str]) -> None:
    """Notes that these jobs (stage -> id) of a run are submitted."""
    DONE.append(f"{run.name} is submitted all the same: {', '.join(f'{one} {jobs[one]}' for one in jobs)}")


def _ended(main: Callable[[], int | None]) -> int | None:
    try:
        try:
            code = main()
        except SystemExit as end:  # argparse's, after --help
            code = end.code  # type: ignore[assignment]
        sys.stdout.flush()  # here, where an error can be told
        return code
    except tables.Unwritable as error:
        done = "".join(f"; {text}" for text in DONE)
        print(f"error: standard output cannot be written: {error}{done}", file=sys.stderr)
        return UNWRITABLE
    finally:
        with contextlib.suppress(tables.Unwritable, BrokenPipeError):
            sys.stdout.flush()  # Python would end with another code if it failed there
