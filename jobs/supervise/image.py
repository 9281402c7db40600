"""`python -S -c START STAGE ARGUMENTS…` (START: jobs/run/image.py) runs this environment's interpreter with
the arguments, from a copy of the environment's image on this node's own disk and, if the working directory is
a run's code, in a copy of that; from the originals, with a message, if there can be no copies.

Imports here are read from the shared file system, for every rank at every start, so there are few. Only if a
copy is missing, unpacking.py makes it (or mounting.py mounts it).
"""

from __future__ import annotations

import fcntl
import os
import sys

from jobs.run import image, private, staged
from jobs.run.errors import UserError


def main() -> None:
    setting, arguments = sys.argv[1], sys.argv[2:]
    python, code = image.beside(sys.executable), image.of_code(os.getcwd())
    try:
        stage = staged.expanded(setting, os.environ)
        own, here = find(stage, python, staged.ENVIRONMENT), find(stage, code, staged.CODE)
    except (UserError, OSError):
        own = here = None
    if own is None or here is None:
        from jobs.supervise import unpacking

        own, here = unpacking.places(setting, python, code, training="jobs.train" in arguments)
    else:
        print(f"environment: {own} on {os.uname().nodename}, found", flush=True)
    if here:
        os.environ[image.VARIABLE] = here
        os.chdir(here)
    program = image.interpreter(own) if own else sys.executable
    os.execv(program, [program, *arguments])


def find(stage: str, packed: str, suffix: str) -> str | None:
    """The folder with a complete copy, locked against eviction by this process and what it executes; None if
    there is none, "" if there is no image of the code. Raises UserError and OSError if there can be none."""
    try:
        status = os.stat(packed)
    except FileNotFoundError:
        return "" if suffix == staged.CODE else None
    place = staged.folder_in(stage)
    try:
        inside = private.open_folder(place, make=False)
    except FileNotFoundError:
        return None
    try:
        name = hold_one(inside, names(packed, status, suffix, place))
        return os.path.join(place, name) if name else None
    finally:
        os.close(inside)


def names(packed: str, status: os.stat_result, suffix: str, place: str) -> list[str]:
    """The names that a complete copy of an image may have for this process, the best first: where the ranks
    of its job step have it mounted, and where it is unpacked."""
    found = [staged.name(packed, status, suffix, place)]
    step = [os.environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT")]
    if packed.endswith(image.SQUASHED) and step[1]:
        found.insert(0, staged.name(packed, status, staged.MOUNT, "\0".join([place, *step])))
    return found


def hold_one(inside: int, names: list[str]) -> str:
    """The first of these that exists, now locked; "" if none does."""
    return next((name for name in names if hold(inside, name)), "")


def hold(inside: int, name: str) -> bool:
    """Takes a shared lock on the copy, if it exists, with a descriptor that the next program inherits."""
    fd = staged.open_inside(inside, name)
    if fd is None:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # Eviction holds the exclusive lock while it removes the name.
        if not os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=inside)):
            raise FileNotFoundError(name)
        if name.endswith(staged.MOUNT) and not is_mounted(fd):
            raise FileNotFoundError(name)
    except (BlockingIOError, FileNotFoundError):
        os.close(fd)
        return False
    os.utime(fd)
    os.set_inheritable(fd, True)
    return True


def is_mounted(fd: int) -> bool:
    """Whether an image is mounted in this folder for this process, and responds. Its interpreter does not
    show that: it may be the system's, which always exists."""
    try:
        os.close(os.open(f"{staged.MOUNTED}/bin", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd))
    except OSError:
        return False
    return True
