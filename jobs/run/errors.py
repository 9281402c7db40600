"""A mistake of the user's, and how every command ends on one: one line on stderr, exit code 2."""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading JSON leads to that is damaged, nested without end, or of another layout than ours."""

UNREACHABLE = (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EHOSTDOWN),
    *(errno.ESHUTDOWN, errno.ENOTCONN),  # Lustre that has been evicted; FUSE whose process has ended
)
"""Errors of a file whose disk or server is broken or does not answer: it may by the next start, or to another
node."""
REFUSED = {
    *UNREACHABLE,
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EUCLEAN),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV),
    *(errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK),
}
"""Errors of a file that are no defect of ours: its owner, its file system or its disk does not let us."""


class UserError(Exception):
    """What is wrong, where, and the fix, in one line. Commands print it without a traceback."""


def refusal(error: OSError) -> str:
    """What cannot be written or read, why, and, where that is the matter, whose it is."""
    path = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "a file"
    verb = "written" if error.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "used"
    whose = ""
    if error.errno in (errno.EACCES, errno.EPERM):
        from jobs.run import private

        there = path if os.path.lexists(path) else os.path.dirname(path)
        try:
            owner, name = os.stat(there).st_uid, "it" if there == path else there
            whose = f"; {name} is {private.user(owner)}'s" if owner != os.geteuid() else ""
        except OSError:
            pass
    return f"{path} cannot be {verb}: {error.strerror}{whose}"


def one_line(error: BaseException, most: int | None = None) -> str:
    """Its message in one line of at most so many characters; if it says nothing, what kind of error it is
    and where it was raised."""
    return " ".join(str(error).split())[:most] or f"{type(error).__name__}{_place(error)}"[:most]


def _place(error: BaseException) -> str:
    import linecache  # which every start would import otherwise

    step = error.__traceback__
    if step is None:
        return ""
    while step.tb_next:
        step = step.tb_next
    file, line = step.tb_frame.f_code.co_filename, step.tb_lineno
    return f" at {os.path.basename(file)}:{line} ({linecache.getline(file, line).strip()})"


def take_all_characters() -> None:
    """Has standard output tell a character that its encoding lacks (Latin-1 has no "…"), and a file's name
    that is no text, as an escape, as standard error does: no job comes to nothing by what it says last."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and ends the process with a stable exit code.

    0: done (`main` returned None or 0). 2: the user's mistake, one line on stderr. 130: Ctrl-C. Any other
    code is the one `main` returned. Everything else is a defect of ours and keeps its traceback.
    """
    take_all_characters()
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone; what is still buffered has nowhere to go either.
        sys.stderr.close()
        sys.exit(0)
    sys.exit(code or 0)
