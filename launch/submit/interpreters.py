"""Refuses, before anything is submitted, an interpreter that could not train and resume."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from jobs.run import environment, image
from jobs.run.errors import UserError
from launch.submit.profiles import Resolved
from launch.submit.runs import CHECKOUT

SECONDS = 60.0
"""How long an interpreter on a slow file system may take to answer."""


def check(*jobs: Resolved) -> None:
    """Raises UserError if the interpreter of one of the jobs lacks a package or has an incompatible one.

    Not checked are one inside a container, and one that this machine does not have or cannot run: a training
    checks again at its start. Packages that a job's set-up lines may bring are not missed.
    """
    for python, job in {job.settings.python or sys.executable: job for job in jobs}.items():
        if job.settings.container is not None:
            continue
        if job.settings.environment and (program := shutil.which(os.path.expanduser(python))):
            image.check(Path(program))
        wrong = environment.problems() if python == sys.executable else _asked(python, job)
        if job.settings.setup:
            wrong = [problem for problem in wrong if not problem.endswith(environment.MISSING)]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UserError(
                f"{python} could not train and resume a run: {', '.join(wrong[:3])}{more}; "
                f"env/setup.sh --python {shlex.quote(python)} installs what it lacks"
            )


def is_this(job: Resolved) -> bool:
    """Whether a job runs in this environment, so that what is installed here is what it will find."""
    settings = job.settings
    return settings.python in ("", sys.executable) and not settings.container and not settings.setup


def _asked(python: str, job: Resolved) -> list[str]:
    """The problems that another interpreter reports of itself; [] if it reports none."""
    program = shutil.which(os.path.expanduser(python))
    if program is None:
        return []
    try:
        answer = subprocess.run(
            [program, "-m", "jobs.run.environment"], cwd=CHECKOUT, env=os.environ | job.settings.env,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=True,
        )  # fmt: skip
        return list(json.loads(answer.stdout)["problems"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return []
