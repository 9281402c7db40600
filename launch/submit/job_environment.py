"""The environment variables that a profile sets for a job, in a file beside its script, private to its owner.

So the values appear in no script, comment or dry run, nor in the copy of the script that Slurm keeps.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from jobs.run import files, secrets
from jobs.run.directory import Run, write_atomically
from jobs.run.settings import Settings
from launch.submit.profiles import Resolved


def check(settings: Settings) -> None:
    """Raises UserError for a file of `secrets` that is missing, or that others may read."""
    for name, file in settings.secrets.items():
        secrets.read(file, f"secrets.{name}")


def local(settings: Settings) -> dict[str, str]:
    """The variables, for a job on this machine. Raises UserError as `check` does."""
    found = {name: secrets.read(file, f"secrets.{name}") for name, file in settings.secrets.items()}
    return settings.env | found


def place(run: Run, stage: str) -> Path:
    return run.job / files.ENVIRONMENT(STAGE=stage)


def write(run: Run, resolved: Resolved) -> None:
    """Writes `job/STAGE.env`, which the batch script reads; removes it if there is nothing to set."""
    file = place(run, resolved.stage)
    settings = resolved.settings
    if not (settings.env or settings.secrets):
        file.unlink(missing_ok=True)
        return
    write_atomically(file, text(settings).encode(), durable=False, private=True)


def text(settings: Settings) -> str:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in settings.env.items()]
    for name, file in settings.secrets.items():
        path = shlex.quote(os.path.abspath(os.path.expanduser(file)))
        message = shlex.quote(f"error: secrets.{name}: {file} cannot be read on this node")
        lines.append(f"{name}=$(cat -- {path}) && export {name} || {{ echo {message} >&2; exit 2; }}")
    return "\n".join(lines) + "\n"
