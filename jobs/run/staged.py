"""Copies of packed datasets on a node's own disk (`--stage`): where they are, and how they are opened.

STAGE/baton-UID-data/      this user's alone (private.py); STAGE is the setting, expanded on the node
    KEY.zip                a copy, whole and verified: it gets this name last. KEY names one state of one file
    KEY.pixels             its images, decoded (jobs/mmseg/decoded.py)
    KEY.env, KEY.code      an unpacked image of an environment, or of a run's code, the same way
                           (jobs/supervise/unpacking.py)
    KEY.sqfs, KEY.mnt      a copy of an environment's image, and where ranks have it mounted
                           (jobs/supervise/mounting.py)
    KEY.part, KEY.env.part one in the making, where it cannot be without a name until then
    lock, lock-image       held by the one process that copies a dataset, or unpacks or mounts an image
    lock-pixels            held while images are begun to be kept

Readers of a copy hold a shared lock on it. The kernel releases the locks of a process that dies, so a copy
that can be locked exclusively has no users. jobs/supervise/copier.py makes the copies.

Imports little at its top, like jobs/run/image.py.
"""

from __future__ import annotations

import fcntl
import os
import stat

from jobs.run import private
from jobs.run.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any

VARIABLE = "BATON_STAGE"
"""Environment variable, set by the supervisor: where a worker finds copies; "" for nowhere."""
DATASET, ENVIRONMENT, CODE = ".zip", ".env", ".code"
PIXELS = ".pixels"
SQUASHED, MOUNT = ".sqfs", ".mnt"
MOUNTED = "root"
"""The mount point in the folder of a mounted image (jobs/supervise/mounting.py)."""
FOLDERS = (ENVIRONMENT, CODE, MOUNT)
OF_IMAGES = (*FOLDERS, SQUASHED)
SIZE = ".baton-bytes"
"""A file in a copy that is a folder, with the copy's size in bytes."""


def _parts(setting: str) -> Iterator[tuple[str, str]]:
    """Splits a setting into (text, variable after it) pairs. Raises ValueError for a $ without a name."""
    while setting:
        text, dollar, setting = setting.partition("$")
        if not dollar:
            yield text, ""
            return
        if setting.startswith("{"):
            name, brace, setting = setting[1:].partition("}")
            named = bool(brace)
        else:
            end = next((n for n, c in enumerate(setting) if not (c == "_" or c.isalnum())), len(setting))
            name, setting, named = setting[:end], setting[end:], True
        if not (named and name.isidentifier() and name.isascii()):
            raise ValueError(name)
        yield text, name


def check(setting: str) -> None:
    """Raises UserError unless a setting is an absolute path, in which `$NAME` and `${NAME}` are variables."""
    try:
        bare = "".join(text + ("/x" if name else "") for text, name in _parts(setting))
    except ValueError:
        bare = ""
    if not bare.startswith("/"):
        raise UserError(
            f"must be an absolute path on the nodes, in which $NAME is a variable there, not {setting!r}"
        )


def expand(setting: str, environ: Mapping[str, str]) -> Path:
    """The folder that a setting means on this node. Raises UserError if it means none."""
    from pathlib import Path

    return Path(expanded(setting, environ))


def expanded(setting: str, environ: Mapping[str, str]) -> str:
    """`expand`, as a string."""
    try:
        check(setting)
    except UserError as error:
        raise UserError(f"stage: {error}") from None
    path = ""
    for text, name in _parts(setting):
        if name and not environ.get(name):
            raise UserError(f"stage: {setting}: {name} is not set on {os.uname().nodename}")
        path += text + (environ[name] if name else "")
    if not os.path.isabs(path):
        raise UserError(f"stage: {setting}: {path} is not an absolute path")
    return path


def place() -> Path | None:
    """Where this worker looks for copies; None if nowhere."""
    from pathlib import Path

    text = os.environ.get(VARIABLE, "")
    return Path(text) if text else None


def folder(stage: str | Path) -> Path:
    from pathlib import Path

    return Path(folder_in(stage))


def folder_in(stage: str | Path) -> str:
    return os.path.join(stage, f"baton-{os.geteuid()}-data")


def name(path: str | Path, status: os.stat_result, suffix: str = DATASET, at: str = "") -> str:
    """The name of the copy of the container or image at `path`, which changes if that is replaced or
    modified. `at`: the place of a copy that works only there."""
    try:
        # hashlib's own, without OpenSSL, loading which is a third of the extra time of a start from an image.
        from _blake2 import blake2b
    except ImportError:
        from hashlib import blake2b

    real = os.path.realpath(path)
    text = f"{real}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}" + (at and f"\0{at}")
    return blake2b(os.fsencode(text), digest_size=16).hexdigest() + suffix


def open_copy(stage: Path, path: Path, status: os.stat_result) -> int | None:
    """A descriptor of the copy of the container at `path` (`status`: its stat), locked against eviction and
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


def found(stage: Path, path: Path, status: os.stat_result) -> dict[str, Any] | None:
    """The fields of an event `staged` if there is a copy of the container at `path` (`status`: its stat),
    which is marked as used now; else None."""
    fd = open_copy(stage, path, status)
    if fd is None:
        return None
    os.close(fd)
    return {"copy": str(folder(stage) / name(path, status)), "bytes": status.st_size, "found": True}


def open_inside(inside: int, name: str) -> int | None:
    """A descriptor of this user's copy of that name in the open folder; None if there is none."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=inside)
    except OSError:
        return None
    status = os.fstat(fd)
    right = stat.S_ISDIR if name.endswith(FOLDERS) else stat.S_ISREG
    if right(status.st_mode) and status.st_uid == os.geteuid():
        return fd
    os.close(fd)
    return None


def discard(stage: Path, path: Path, status: os.stat_result, unused: bool = False) -> None:
    """Removes a copy; with `unused` only if nobody uses it. Whoever has it open can continue to read it."""
    import contextlib

    with contextlib.suppress(UserError, OSError), contextlib.ExitStack() as opened:
        inside = private.open_folder(folder(stage), make=False)
        opened.callback(os.close, inside)
        if unused and (fd := open_inside(inside, name(path, status))) is not None:
            opened.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name(path, status), dir_fd=inside)
