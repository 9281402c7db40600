"""An environment as one file (env/pack.sh): where it lies, and whether it is what was packed."""

from __future__ import annotations

import os
from pathlib import Path

from jobs.run.errors import UserError

PROGRAM = "jobs.supervise.image"
"""Runs a command from a copy of the image on the node's own disk."""


def beside(python: Path) -> Path:
    """The image of the environment that an interpreter belongs to (its ENVIRONMENT/bin/python)."""
    return Path(f"{python.parent.parent}.tar")


def check(python: Path) -> None:
    """Raises UserError unless there is an image of an interpreter's environment, packed after the last
    package was installed or removed."""
    image, environment = beside(python), python.parent.parent
    if not image.is_file():
        raise UserError(f"environment: image: there is no {image}: env/pack.sh {environment} makes it")
    packed = image.stat().st_mtime
    changed = [
        path for path in environment.glob("lib/python*/site-packages") if path.stat().st_mtime > packed
    ]
    if changed:
        raise UserError(
            f"environment: image: {environment} has changed since {image} was made: "
            f"env/pack.sh {environment} packs it again"
        )


def interpreter(folder: Path) -> str:
    return os.fspath(folder / "bin" / "python")
