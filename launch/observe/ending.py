"""How a command starts and exits, whatever its standard output is: terminal, pipe, full disk, closed."""

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
"""Exit code of a command that succeeded but could not print its output (sysexits.h: EX_IOERR)."""

DONE: list[str] = []
"""What this command has done that must not be done twice, to be told even if its output cannot be written."""


def write(file: Path, text: str) -> None:
    """Writes the file that --out names, or one in its default place. Raises UserError if that fails."""
    try:
        write_atomically(file, text.encode())
    except OSError as error:
        raise UserError(f"{refusal(error)}; --out FILE writes it elsewhere") from None


def run(main: Callable[[], int | None]) -> None:
    """Like `run_command`, with output that is safe for a terminal."""
    tables.guard()
    run_command(lambda: _ended(main))


def submitted(run: Run, jobs: dict[str, str]) -> None:
    """Notes that these jobs (stage -> id) of a run have been submitted."""
    DONE.append(f"{run.name} is submitted all the same: {', '.join(f'{one} {jobs[one]}' for one in jobs)}")


def _ended(main: Callable[[], int | None]) -> int | None:
    try:
        try:
            code = main()
        except SystemExit as end:  # argparse's, after --help
            code = end.code  # type: ignore[assignment]
        sys.stdout.flush()  # here, where an error can be reported
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
            sys.stdout.flush()  # if this failed at exit, Python would use another exit code


def _is_nowhere() -> bool:
    """Whether the working directory of this process has been removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False
