"""Stops clusters when whoever started them is gone: reads state directories from stdin, a line each, and
stops all of them at end of file, which comes when the other end of the pipe dies, of whatever.
"""

from __future__ import annotations

import sys

from jobs.run.errors import run_command
from tests.support.cluster.config import Layout
from tests.support.cluster.down import stop


def main() -> None:
    states = [line.rstrip("\n") for line in sys.stdin]
    for state in states:
        if Layout(state).lock.exists():
            stop(state)


if __name__ == "__main__":
    run_command(main)
