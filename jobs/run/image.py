"""An environment as one file (env/pack.sh), and a run's code as one (launch/submit/code_image.py): where they
are, and whether they are up to date. Imports little: jobs/supervise/image.py imports it before there is the
copy from which everything else is imported."""

from __future__ import annotations

import os

from jobs.run.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = "jobs.supervise.image"
"""The program that runs a command from copies of the images on the node's own disk."""
START = (
    "import sys; sys.path.append(sys.path.pop(0)); sys.dont_write_bytecode = True;"
    f" from {PROGRAM} import main; main()"
)
"""How it is started: `-m` and `site` would import more, and each import would search the code first. Writing
bytecode would cost a start some 70 calls on the shared disk."""
IMPORTED = (
    *("jobs", "jobs.run", "jobs.run.errors", "jobs.run.image", "jobs.run.private", "jobs.run.staged"),
    *("jobs.supervise", PROGRAM),
)
"""What it imports from the code itself if it finds its copies; compiled at every submission."""
STARTED_SO = "jobs.supervise.unpacking"
"""A run whose code has this module starts the program like that; older ones use `-m`."""
VARIABLE = "BATON_CODE"
"""Environment variable: the copy of the run's code that a task uses; unset if it uses the code itself."""
CODE = "code.tar.gz"
"""The code's image, beside the run's `code`."""
SQUASHED = ".sqfs"
"""Suffix of an environment's image that is a squashfs, which is mounted; others are a tar."""
OWN_PYTHON = ".python"
"""In an environment's image: the Python that it was made with, if that is not the system's."""


def beside(python: str | Path) -> str:
    """The image of the environment that an interpreter belongs to (its ENVIRONMENT/bin/python)."""
    environment = os.path.dirname(os.path.dirname(python))
    squashed = f"{environment}{SQUASHED}"
    return squashed if os.path.isfile(squashed) else f"{environment}.tar"


def of_code(folder: str | Path) -> str:
    """The path of the image of a run's code, which is in `folder`."""
    return os.path.join(os.path.dirname(folder), CODE)


def check(python: Path) -> None:
    """Raises UserError unless an interpreter's environment has an image that was packed after the last
    package was installed or removed."""
    image, environment = beside(python), python.parent.parent
    pack = f"env/pack.sh {'--squashfs ' if image.endswith(SQUASHED) else ''}{environment}"
    if not os.path.isfile(image):
        raise UserError(f"environment: image: {image} does not exist: {pack} makes it")
    packed = os.stat(image).st_mtime
    changed = [
        path for path in environment.glob("lib/python*/site-packages") if path.stat().st_mtime > packed
    ]
    if changed:
        raise UserError(
            f"environment: image: {environment} has changed since {image} was made: {pack} packs it again"
        )


def interpreter(folder: str | Path) -> str:
    return os.path.join(folder, "bin", "python")
