"""How a command begins and ends, whatever its standard output is: a terminal, a pipe, a full disk, closed."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from jobs.run.directory import Run, write_atomically
from jobs.run.errors import REFUSED, UserError, refusal, run_command
from launch.observe import tables

UNWRITABLE = 74
"""Exit code of a command that did what it should and could not print it (sysexits.h: EX_IOERR)."""

DONE: list[str] = []
"""What this command has done that is not to be done twice, for one who cannot read it on its output."""


def write(file: Path, text: str, instead: str) -> None:
    """Writes a file that the user reads. Where that is refused, UserError ends with what to do `instead`."""
    try:
        write_atomically(file, text.encode())
    except OSError as error:
        raise UserError(f"{refusal(error)}; {instead}") from None


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
    except OSError as error:
        if error.errno in REFUSED and error.filename is not None:
            raise UserError(refusal(error)) from None
        if error.errno == errno.ENOENT and _is_nowhere():
            raise UserError("the folder that this shell is in is gone: cd to another first") from None
        raise
    finally:
        with contextlib.suppress(tables.Unwritable, BrokenPipeError):
            sys.stdout.flush()  # Python would end with another code if it failed there


def _is_nowhere() -> bool:
    """Whether the folder that this process works in was removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False
