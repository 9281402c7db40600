"""A mistake of the user's, and how every command ends on one: one line on stderr, exit code 2."""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 4000
"""Characters of an error's words that are told."""

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
    return " ".join(_words(error).split())[:most] or f"{type(error).__name__}{_place(error)}"[:most]


def described(error: BaseException, most: int = MOST) -> str:
    """What kind of error it is, what it says, in its first line where in the user's own code it was raised,
    and what it followed from if it names that; of a UserError its words, which say so. Raises nothing,
    whatever the error is."""
    if isinstance(error, UserError):
        return str(error)
    kind = type(error)
    module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    words = limited(_words(error), most)
    first, newline, more = f"{module}{kind.__qualname__}: {words}".rstrip().partition("\n")
    first, end = (first[:-1], ":" if newline else "") if first.endswith(":") else (first, "")
    if "Traceback (most" not in more:  # which says so itself: torch's, of a loader's process
        first += users_place(error)
    said = f"{first}{end}{newline}{more}"
    from_what = described(cause, most) if (cause := _root(error)) is not None else ""
    return said if from_what in said else f"{said} (from {from_what})"


def _root(error: BaseException) -> BaseException | None:
    """What an error was raised from in the first place, if from any."""
    seen = [error]
    while (cause := seen[-1].__cause__) is not None and not any(cause is one for one in seen):
        seen.append(cause)
    return seen[-1] if len(seen) > 1 and cause is None else None


def in_a_line(error: BaseException, most: int = 300) -> str:
    """The same in one line, its message of at most so many characters."""
    return " ".join(described(error, most).split())


def limited(text: str, most: int = MOST) -> str:
    """A text that is told in events and messages, without its middle where it has no end."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def users_place(error: BaseException) -> str:
    """` (FILE.py:LINE)`, the innermost of the user's own code that an error came through; "" if it is none
    of theirs, and of one that says it itself."""
    step, found = error.__traceback__, ""
    while step is not None and not isinstance(error, SyntaxError):
        file = step.tb_frame.f_code.co_filename
        if is_users(file):
            found = f" ({os.path.basename(file)}:{step.tb_lineno})"
        step = step.tb_next
    return found


def without_places(text: str) -> str:
    """An error's words alone: the name of a file of the user's (cuda_ops.py) says nothing of what it is."""
    import re  # which every start would import otherwise

    return re.sub(r" \([^()/]+\.py:\d+\)", "", text)


def is_users(file: str) -> bool:
    """Whether that is none of Python's, of an installed package, of torch's compiler, or of ours."""
    installed = {"site-packages", "dist-packages"} & set(file.split(os.sep))
    return not (installed or _is_kernel(os.path.basename(file)) or file.startswith(("<", *_NOT_THE_USERS)))


def _is_kernel(name: str) -> bool:
    """A file that torch.compile has written, wherever its cache is: c, and SHA-256 in base 32."""
    hashed = name.removeprefix("c").removesuffix(".py")
    return len(hashed) == 51 == len(name) - 4 and set(hashed) <= set("abcdefghijklmnopqrstuvwxyz234567")


_NOT_THE_USERS = (os.path.dirname(os.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)
"""The folders of Python's library, and of the jobs."""


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a class of somebody's own
        return ""


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
