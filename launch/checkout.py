"""Every command's first import: makes the checkout importable, by a Python that has what commands need.

`python launch/NAME.py` looks for modules in this folder first, which is how this one is found. Its syntax
must stay valid for the python3 of any login node (3.6 and later).
"""

import argparse
import atexit
import gc
import os
import signal
import sys
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from jobs.run import environment

# Otherwise `import logs` or `import report` anywhere would find the files of this folder.
sys.path[:] = [folder for folder in sys.path if folder != os.path.dirname(__file__)]
# No traceback for Ctrl-C during the imports, which take long on a slow file system; only where this process
# is a command.
INTERRUPTIBLE = signal.getsignal(signal.SIGINT) is signal.default_int_handler
COMMAND = os.path.realpath(os.path.dirname(sys.argv[0])) == os.path.realpath(os.path.dirname(__file__))
if INTERRUPTIBLE and COMMAND:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
environment.enter()
# Garbage collection during the imports and at exit would take a fifth of a command's time.
gc.disable()
atexit.register(gc.freeze)


MAY_BE_EMPTY = {"X", "ARGS", "SUFFIX"}
"""Metavars of options that may be empty: an empty value overrides a setting of the profile."""


class _Parser(argparse.ArgumentParser):
    def parse_args(self, *arguments, **more):  # type: ignore[no-untyped-def]
        """Refuses an empty value, such as "$RUN" with RUN unset: taken as no value, it would make the command
        do something else, such as start a new training instead of --resume."""
        found = super().parse_args(*arguments, **more)
        for action in self._actions:
            given = getattr(found, action.dest, None)
            if given != action.default and "" in (given if isinstance(given, list) else [given]):
                taken = str(action.metavar or action.dest)
                if taken not in MAY_BE_EMPTY:
                    from jobs.run.errors import UserError

                    name = [taken, *action.option_strings][-1]
                    raise UserError(f"{name} has an empty value: is a variable not set?")
        return found


def parser(description: "str | None", examples: str) -> argparse.ArgumentParser:
    """The argument parser of a command, before its options are added."""
    return _Parser(
        description=description,
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(main: "Callable[[], int | None]") -> None:
    """Runs a command's `main`, with output made safe for a terminal, and exits as `run_command` does."""
    from launch.observe import ending

    if INTERRUPTIBLE:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.enable()
    ending.run(main)
