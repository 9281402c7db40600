"""Stops clusters when whoever started them is gone: reads state directories from stdin, a line each, and
stops all of them at end of file, which comes when the other end of the pipe dies, of whatever.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from env.cluster.config import Layout
from env.cluster.down import stop
from jobs.run.errors import run_command


def main() -> None:
    states = [line.rstrip("\n") for line in sys.stdin]
    for state in states:
        if Layout(state).lock.exists():
            stop(state)


if __name__ == "__main__":
    run_command(main)
