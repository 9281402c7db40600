"""Rewrites the run's report after an evaluation, with the command in the run's snapshot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jobs.run.directory import Run

SECONDS = 300.0
COMMAND = Path(__file__).resolve().parents[2] / "launch" / "report.py"


def write(run: Run) -> None:
    """Writes RUN/report.html. If that fails, prints a message: the evaluation is done nevertheless."""
    if not COMMAND.exists():  # made by an older checkout
        return
    try:
        done = subprocess.run(
            [sys.executable, str(COMMAND), str(run.path)],
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        print((done.stdout or done.stderr).strip(), flush=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"no report: {error}; python launch/report.py {run.name} writes it", file=sys.stderr)
