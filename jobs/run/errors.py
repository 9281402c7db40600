"""Mistakes of the user's, on which every command exits with one line on standard error and code 2."""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 4000
"""The most characters of an error message that are reported."""

MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading JSON can raise if it is damaged, nested too deeply, or not laid out as expected."""

UNREACHABLE = (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EHOSTDOWN),
    *(errno.ESHUTDOWN, errno.ENOTCONN),  # an evicted Lustre client; FUSE whose process has ended
)
"""Errors of a file whose disk or server is broken or does not answer: it may work at the next start, or on
another node."""
REFUSED = {
    *UNREACHABLE,
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EUCLEAN),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV),
    *(errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK),
}
"""File errors that are not a bug of ours: its owner, its file system or its disk refuses."""


class UserError(Exception):
    """What is wrong, where, and how to fix it, in one line. Commands print it without a traceback."""


def refusal(error: OSError) -> str:
    """What cannot be written or read, why, and, if that is the reason, whose it is."""
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
    """The error's message in one line of at most so many characters; if it has none, its type and where it
    was raised."""
    return " ".join(said_by(error).split())[:most] or f"{type(error).__name__}{_place(error)}"[:most]


def described(error: BaseException, most: int = MOST) -> str:
    """The error's type and message, with the place in the user's own code in the first line, and its root
    cause, if any; for a UserError its message alone, which says all that. Never raises."""
    if isinstance(error, UserError):
        return str(error)
    kind = type(error)
    module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    words = limited(said_by(error), most)
    first, newline, more = f"{module}{kind.__qualname__}: {words}".rstrip().partition("\n")
    first, end = (first[:-1], ":" if newline else "") if first.endswith(":") else (first, "")
    if "Traceback (most" not in more:  # unless it says so itself, as torch's does for a DataLoader worker
        first += users_place(error)
    said = f"{first}{end}{newline}{more}"
    from_what = described(cause, most) if (cause := _root(error)) is not None else ""
    return said if from_what in said else f"{said} (from {from_what})"


def _root(error: BaseException) -> BaseException | None:
    """The root cause that an error was raised from, if any."""
    seen = [error]
    while (cause := seen[-1].__cause__) is not None and not any(cause is one for one in seen):
        seen.append(cause)
    return seen[-1] if len(seen) > 1 and cause is None else None


def in_a_line(error: BaseException, most: int = 300) -> str:
    """`described` in one line, with at most so many characters of the message."""
    return " ".join(described(error, most).split())


def limited(text: str, most: int = MOST) -> str:
    """A text for events and messages, without its middle if it is longer than `most`."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def users_place(error: BaseException) -> str:
    """` (FILE.py:LINE)`, the innermost line of the user's own code in the traceback; "" if there is none, and
    for a SyntaxError, which says so itself."""
    step, found = error.__traceback__, ""
    while step is not None and not isinstance(error, SyntaxError):
        file = step.tb_frame.f_code.co_filename
        if is_users(file):
            found = f" ({os.path.basename(file)}:{step.tb_lineno})"
        step = step.tb_next
    return found


def without_places(text: str) -> str:
    """An error's text without its places: the name of a user's file (cuda_ops.py) must not classify it."""
    import re  # which every start would import otherwise

    return re.sub(r" \([^()/]+\.py:\d+\)", "", text)


def is_users(file: str) -> bool:
    """Whether a file is the user's: not of Python, an installed package, torch's compiler, or ours."""
    installed = {"site-packages", "dist-packages"} & set(file.split(os.sep))
    return not (installed or _is_kernel(os.path.basename(file)) or file.startswith(("<", *_NOT_THE_USERS)))


def _is_kernel(name: str) -> bool:
    """Whether torch.compile has written a file, wherever its cache is: c + SHA-256 in base 32 + .py."""
    hashed = name.removeprefix("c").removesuffix(".py")
    return len(hashed) == 51 == len(name) - 4 and set(hashed) <= set("abcdefghijklmnopqrstuvwxyz234567")


_NOT_THE_USERS = (os.path.dirname(os.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)
"""The folders of Python's library, and of the jobs."""


def said_by(error: BaseException) -> str:
    """The error's message, with objects' types instead of their addresses; "" if it cannot be had."""
    try:
        said = str(error)
    except Exception:  # somebody's own class
        return ""
    if " object at 0x" not in said:
        return said
    import re

    return re.sub(r"<(?:[\w.<>]+\.)?(\w+) object at 0x[0-9a-f]+>", r"\1", said)


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
    """Makes standard output escape characters that its encoding lacks (Latin-1 has no "…") and undecodable
    file names, as standard error does: no job must fail because of what it prints."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and exits with a stable exit code.

    0: done (`main` returned None or 0), or the output's reader has gone. 2: the user's mistake, one line on
    standard error. 130: Ctrl-C. Other codes are `main`'s. Any other error is our bug and keeps its traceback.
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
        # The reader (head, less) has gone. This silences Python's complaint at exit about what is buffered.
        sys.stderr.close()
        sys.exit(0)
    sys.exit(code or 0)
