"""The folder of a node's copies (jobs/run/staged.py): opened, cleared of remains, and made room in.

Imports little at its top, as jobs/run/image.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

from jobs.run import private, staged
from jobs.run.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLD_SECONDS = 14 * 86400.0
"""An unused copy goes after that time in any case, others when their room is needed."""
KEPT_FREE = 0.05
"""Share of the file system that is left to others."""


def open_folder(stage: str | Path) -> int:
    """Makes what the last part of `stage` names, if need be: /local/$USER, say, where /local is there."""
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(stage, 0o700)
        return private.open_folder(staged.folder_in(stage))
    except FileNotFoundError:
        raise UserError(f"{os.uname().nodename} has no {stage}") from None
    except OSError as error:
        raise UserError(f"{stage} cannot be written on {os.uname().nodename}: {error.strerror}") from None


def open_lock(inside: int, name: str = "lock") -> int:
    """Waits for a lock of the folder; it ends with the descriptor, and so with the process."""
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=inside)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return fd


def remove_remains(inside: int, folders: bool = False) -> None:
    """What copiers (of images, if `folders`) left that died: the lock is ours, so none is at work."""
    for name in os.listdir(inside):
        if name.endswith(".part") and any(kind in name for kind in staged.FOLDERS) == folders:
            remove(inside, name)


def remove(inside: int, name: str) -> None:
    """Removes a copy, file or folder, or what there is of it. A folder loses its name first, so that nobody
    finds a part of it."""
    try:
        os.unlink(name, dir_fd=inside)
    except IsADirectoryError:
        part = f"{name}.{os.getpid()}.part"
        os.rename(name, part, src_dir_fd=inside, dst_dir_fd=inside)
        import shutil

        with contextlib.suppress(FileNotFoundError):  # another has found it without its name
            shutil.rmtree(f"/proc/self/fd/{inside}/{part}")


def evict(inside: int, name: str) -> bool:
    """Removes a copy unless somebody reads it; whether it did."""
    fd = staged.open_inside(inside, name)
    if fd is None:
        return False
    with closing(fd), contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(inside, name)
        return True
    return False


def make_room(inside: int, size: int, stage: str | Path) -> None:
    """Evicts copies that nobody reads: the old ones, and of the others, the longest unused first, as many as
    `size` bytes need. Raises UserError, having evicted only old ones, if that would not do."""
    from jobs.run import file_systems

    unused = sorted(_unused(inside))
    for used, _, name in unused:
        if time.time() - used > OLD_SECONDS:
            evict(inside, name)
    unused = [one for one in unused if time.time() - one[0] <= OLD_SECONDS]
    whole = os.statvfs(inside)
    missing = size + int(KEPT_FREE * whole.f_blocks * whole.f_frsize) - file_systems.room(inside)
    if missing > sum(size for _, size, _ in unused):
        free = max(0, size - missing)
        raise UserError(
            f"{stage} on {os.uname().nodename} has room for {free / 1e9:,.1f} GB, and {size / 1e9:,.1f} GB "
            "are needed"
        )
    for _, freed, name in unused:
        if missing <= 0:
            return
        if evict(inside, name):
            missing -= freed


def _unused(inside: int) -> Iterator[tuple[float, int, str]]:
    """(time of the last use, bytes, name) of each copy that nobody reads."""
    for name in os.listdir(inside):
        kind = os.path.splitext(name)[1]
        fd = staged.open_inside(inside, name) if kind in (staged.DATASET, *staged.FOLDERS) else None
        if fd is None:
            continue
        with closing(fd), contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(fd)
            yield status.st_mtime, _size(fd) if kind in staged.FOLDERS else status.st_size, name


def _size(folder: int) -> int:
    """Bytes of a copy that is a folder."""
    with open(os.open(staged.SIZE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)) as file:
        return int(file.read())


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
