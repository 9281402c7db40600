"""A mistake of the user's, and how every command ends on one: one line on stderr, exit code 2."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading JSON leads to that is damaged, nested without end, or of another layout than ours."""


class UserError(Exception):
    """What is wrong, where, and the fix, in one line. Commands print it without a traceback."""


def one_line(error: BaseException, most: int | None = None) -> str:
    """Its message in one line of at most so many characters; what kind of error it is if it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and ends the process with a stable exit code.

    0: done (`main` returned None or 0). 2: the user's mistake, one line on stderr. 130: Ctrl-C. Any other
    code is the one `main` returned. Everything else is a defect of ours and keeps its traceback.
    """
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
