"""Writes the run's report anew after an evaluation, by the launcher's command in the run's snapshot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jobs.run.directory import Run

SECONDS = 300.0
COMMAND = Path(__file__).resolve().parents[2] / "launch" / "report.py"


def write(run: Run) -> None:
    """Writes RUN/report.html. A report that fails says so and leaves the evaluation as it is: done."""
    if not COMMAND.exists():  # a run that an older checkout made
        return
    try:
        done = subprocess.run(
            [sys.executable, str(COMMAND), str(run.path)],
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        print((done.stdout or done.stderr).strip(), flush=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"no report: {error}; python launch/report.py {run.name} writes it", file=sys.stderr)
