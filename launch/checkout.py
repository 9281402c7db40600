"""Each command's first import. After it the checkout is importable, by a Python that has what commands need.

`python launch/NAME.py` looks for modules in this folder first, which is how this one is found. Readable for
the python3 of any login node (3.6 and later).
"""

import argparse
import atexit
import gc
import os
import sys
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from jobs.run import environment

# Nowhere is this folder's `logs` or `report` what another module looks for.
sys.path[:] = [folder for folder in sys.path if folder != os.path.dirname(__file__)]
environment.enter()
# Looking for garbage, while modules are read and once more at the end, would be a fifth of a command's time.
gc.disable()
atexit.register(gc.freeze)


def parser(description: "str | None", examples: str) -> argparse.ArgumentParser:
    """A command's, before its options are added."""
    return argparse.ArgumentParser(
        description=description,
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(main: "Callable[[], int | None]") -> None:
    """Runs a command's `main`, whose output is safe for a terminal, and ends as `run_command` does."""
    from launch.observe import ending

    gc.enable()
    ending.run(main)
