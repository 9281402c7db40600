"""`python -S -c START STAGE ARGUMENTS…` (START: jobs/run/image.py) runs this environment's interpreter with
the arguments, from a copy of the environment's image on this node's own disk, in a copy of the working
directory, if that is a run's code; from here where there can be none, and says so.

What is imported here comes from the shared file system, for every rank at every start: so little is. Only
where a copy is missing, unpacking.py makes it (or mounting.py, which mounts it).
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
    """The folder with a whole copy, which this process and what it executes hold against eviction; None if
    there is none, "" if there is no such image. Raises UserError and OSError where there can be none."""
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
    """The names that a whole copy of an image may have for this process, the best first: where the ranks of
    its step of a job have it mounted, and where it lies unpacked."""
    found = [staged.name(packed, status, suffix, place)]
    step = [os.environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT")]
    if packed.endswith(image.SQUASHED) and step[1]:
        found.insert(0, staged.name(packed, status, staged.MOUNT, "\0".join([place, *step])))
    return found


def hold_one(inside: int, names: list[str]) -> str:
    """The first of these that is there, held; "" for none."""
    return next((name for name in names if hold(inside, name)), "")


def hold(inside: int, name: str) -> bool:
    """Takes a shared lock on the copy, if there is one, on a descriptor that the next program inherits."""
    fd = staged.open_inside(inside, name)
    if fd is None:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # Whoever evicts it has the other lock while it loses its name.
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
    """Whether an image is mounted in this folder for this process, and somebody answers. Its interpreter does
    not tell: it may be the system's, which is there in any case."""
    try:
        os.close(os.open(f"{staged.MOUNTED}/bin", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd))
    except OSError:
        return False
    return True
