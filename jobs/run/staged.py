"""Copies of packed datasets on a node's own disk (`--stage`): where they lie, and how they are opened.

STAGE/baton-UID-data/      this user's alone (private.py); STAGE is the setting, expanded on the node
    KEY.zip                a copy, whole and verified: it gets this name last. KEY names one state of one file
    KEY.env                an unpacked image of an environment (jobs/supervise/image.py), the same way
    KEY.part, KEY.env.part one in the making, where it cannot be without a name until then
    lock, lock-image       held by the one process that copies a dataset, or unpacks an image

Who reads a copy holds a shared lock on it. The kernel gives up the locks of whoever dies, so they count the
users exactly; a copy whose exclusive lock can be had has none. jobs/supervise/copier.py makes the copies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

from jobs.run import private
from jobs.run.errors import UserError

VARIABLE = "BATON_STAGE"
"""Tells a worker where copies lie; set by its supervisor, "" for nowhere."""
DATASET, ENVIRONMENT = ".zip", ".env"
SIZE = ".baton-bytes"
"""What an environment's copy takes, in a file of it."""
_NAMED = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)


def check(setting: str) -> None:
    """Raises UserError unless a setting is an absolute path, in which `$NAME` and `${NAME}` are variables."""
    bare = _NAMED.sub("/x", setting)
    if not bare.startswith("/") or "$" in bare:
        raise UserError(
            f"must be an absolute path on the nodes, in which $NAME is a variable there, not {setting!r}"
        )


def expand(setting: str, environ: Mapping[str, str]) -> Path:
    """The folder that a setting names on this node. Raises UserError where it names none."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not environ.get(name):
            raise UserError(f"stage: {setting}: {name} is not set on {socket.gethostname()}")
        return environ[name]

    path = Path(_NAMED.sub(value, setting))
    if not path.is_absolute():
        raise UserError(f"stage: {setting}: {path} is no absolute path")
    return path


def place() -> Path | None:
    """Where this worker looks for copies; None for nowhere."""
    text = os.environ.get(VARIABLE, "")
    return Path(text) if text else None


def folder(stage: Path) -> Path:
    return stage / f"baton-{os.geteuid()}-data"


def name(path: Path, status: os.stat_result, suffix: str = DATASET) -> str:
    """The name of the copy of the container, or image, at `path`. Another one in its place is another file,
    or has another time."""
    real = os.path.realpath(path)
    text = f"{real}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"
    return hashlib.blake2b(os.fsencode(text), digest_size=16).hexdigest() + suffix


def open_copy(stage: Path, path: Path, status: os.stat_result) -> int | None:
    """A descriptor of the copy of the container at `path`, whose status is given, locked against eviction and
    marked as used now; None if there is none."""
    try:
        inside = private.open_folder(folder(stage), make=False)
    except (UserError, OSError):
        return None
    try:
        fd = open_inside(inside, name(path, status))
    finally:
        os.close(inside)
    if fd is None:
        return None
    try:
        if os.fstat(fd).st_size == status.st_size:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.utime(fd)
            return fd
    except OSError:  # being evicted
        pass
    os.close(fd)
    return None


def open_inside(inside: int, name: str) -> int | None:
    """A descriptor of a copy of this user's own in the open folder; None if there is none."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=inside)
    except OSError:
        return None
    status = os.fstat(fd)
    right = stat.S_ISDIR if name.endswith(ENVIRONMENT) else stat.S_ISREG
    if right(status.st_mode) and status.st_uid == os.geteuid():
        return fd
    os.close(fd)
    return None


def discard(stage: Path, path: Path, status: os.stat_result, unused: bool = False) -> None:
    """Removes a copy, or only one that is `unused`. Who has it open goes on with it."""
    with contextlib.suppress(UserError, OSError), contextlib.ExitStack() as opened:
        inside = private.open_folder(folder(stage), make=False)
        opened.callback(os.close, inside)
        if unused and (fd := open_inside(inside, name(path, status))) is not None:
            opened.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name(path, status), dir_fd=inside)
