"""The folder of a node's copies (jobs/run/staged.py): opening it, removing leftovers, making room, copying.

Imports little at its top, like jobs/run/image.py, and so does without subprocess and contextlib.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from jobs.run import file_systems, private, staged
from jobs.run.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OLD_SECONDS = 14 * 86400.0
"""Age at which an unused copy is removed in any case; younger ones only if their space is needed."""
KEPT_FREE = 0.05
"""Fraction of the file system that is left to others."""
CHUNK = 8 << 20
KINDS = (staged.DATASET, staged.PIXELS, *staged.OF_IMAGES)
NO_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
"""Errors of a file system without O_TMPFILE."""
UNMOUNT = """{ fusermount3 -u -z "$1" || fusermount -u -z "$1" || umount -l "$1"; } 2>/dev/null
rm -rf --one-file-system "${1%/*}" 2>/dev/null || true"""
"""Unmounts the image in such a folder, whether or not its squashfuse is alive, and removes as much of the
folder as possible."""
IGNORING = ("sh", "-c", 'trap "" HUP INT USR1 USR2 TERM; cd / && exec "$@"', "baton")
"""Starts a program that ignores the signals that Slurm sends to all processes of a job step. In /, since with
an empty part in LD_LIBRARY_PATH programs search the working directory for libraries, dozens of times."""


class closing:
    """Closes a descriptor at the end of a `with`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def run(command: list[str], trouble: str, source: int | None = None) -> str:
    """Runs a command that reads from `source`; returns its last line. Raises UserError if it fails."""
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8", errors="replace") as file:
        with closing(writing):
            null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
            said = [(os.POSIX_SPAWN_DUP2, writing, fd) for fd in (1, 2)]
            actions = [null if source is None else (os.POSIX_SPAWN_DUP2, source, 0), *said]
            pid = os.posix_spawnp(IGNORING[0], [*IGNORING, *command], os.environ, file_actions=actions)
        lines = file.read().strip().splitlines()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise UserError(f"{trouble}: {lines[-1] if lines else f'exit code {code}'}")
    return lines[-1] if lines else ""


def open_folder(stage: str | Path) -> int:
    """Opens the folder of copies; makes the last part of `stage`, as in /local/$USER. Raises UserError."""
    try:
        private.make_folder(stage)
        return private.open_folder(staged.folder_in(stage))
    except FileNotFoundError:
        raise UserError(f"{os.uname().nodename} has no {stage}") from None
    except OSError as error:
        raise UserError(f"{stage} cannot be written on {os.uname().nodename}: {error.strerror}") from None


def open_lock(inside: int, name: str = "lock") -> int:
    """Waits for a lock in the folder, which ends with the returned descriptor, and so with the process.
    Raises UserError if the file system has no locks, since it would be unknown which copies are in use."""
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=inside)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError) and error.errno in private.NO_LOCKS:
            there = os.path.dirname(os.readlink(f"/proc/self/fd/{inside}"))
            raise UserError(
                f"{there} on {os.uname().nodename} has no file locks: name a folder on the node's own disk"
            ) from None
        raise
    return fd


def remove_remains(inside: int, of_images: bool = False) -> None:
    """Removes what dead copiers (of images, if so) have left: we hold the lock, so none is at work."""
    for name in os.listdir(inside):
        if name.endswith(".part") and any(kind in name for kind in staged.OF_IMAGES) == of_images:
            remove(inside, name)


def remove(inside: int, name: str) -> None:
    """Removes a copy, a file or a folder, even a partial one. A folder is renamed first, so that nobody finds
    part of it."""
    try:
        os.unlink(name, dir_fd=inside)
    except IsADirectoryError:
        part = name if name.endswith(".part") else f"{name}.{os.getpid()}.part"
        os.rename(name, part, src_dir_fd=inside, dst_dir_fd=inside)
        if staged.MOUNT in name:
            path = os.path.join(os.readlink(f"/proc/self/fd/{inside}"), part)
            run(["sh", "-c", UNMOUNT, "sh", os.path.join(path, staged.MOUNTED)], f"{path} cannot be removed")
            return
        import contextlib
        import shutil

        with contextlib.suppress(FileNotFoundError):  # another process may have found it under its new name
            shutil.rmtree(f"/proc/self/fd/{inside}/{part}")


def evict(inside: int, name: str) -> bool:
    """Removes a copy unless somebody reads it; returns whether it did."""
    fd = staged.open_inside(inside, name)
    if fd is None:
        return False
    with closing(fd):
        if not _unread(fd):
            return False
        remove(inside, name)
        return True


def _unread(fd: int) -> bool:
    """Whether nobody reads a copy; then nobody can start to until the descriptor is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def make_room(inside: int, size: int, stage: str | Path) -> None:
    """Evicts copies that nobody reads: old ones, and then the least recently used until `size` bytes fit.
    Raises UserError, having evicted only old ones, if that would not suffice."""
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
            f"{stage} on {os.uname().nodename} has room for {free / 1e9:,.1f} GB, but {size / 1e9:,.1f} GB "
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
        fd = staged.open_inside(inside, name) if kind in KINDS else None
        if fd is None:
            continue
        with closing(fd):
            if _unread(fd):
                status = os.fstat(fd)
                yield status.st_mtime, _size(fd) if kind in staged.FOLDERS else status.st_size, name


def _size(folder: int) -> int:
    """Bytes of a copy that is a folder; 0 if a crash of the node has lost the number."""
    try:
        with open(os.open(staged.SIZE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)) as file:
            return int(file.read())
    except (FileNotFoundError, ValueError):
        return 0


def copy(
    source: int,
    inside: int,
    name: str,
    path: str | Path,
    verify: Callable[[int], None],
    read: Callable[[bytes], None] | None = None,
) -> None:
    """Copies the open file at `path` in one sequential pass, during which `read` gets its content; verifies
    what is on the disk, and only then gives it its name. Until then it has none, and vanishes with this
    process, if the file system supports that. Raises UserError if `path` was replaced meanwhile."""
    part = f"{name.removesuffix(staged.DATASET)}.part"
    try:
        with closing(_open_part(inside, part)) as fd:
            os.posix_fadvise(source, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            with open(fd, "wb", buffering=0, closefd=False) as file:
                while whole := os.read(source, CHUNK):
                    if read:
                        read(whole)
                    chunk = memoryview(whole)
                    while chunk:
                        chunk = chunk[file.write(chunk) :]
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # so that `verify` reads it from the disk
            if staged.name(path, os.stat(path), os.path.splitext(name)[1]) != name:
                raise UserError(f"{path} was replaced while it was copied")
            verify(fd)
            if not os.fstat(fd).st_nlink:
                os.link(f"/proc/self/fd/{fd}", part, dst_dir_fd=inside, follow_symlinks=True)
            os.rename(part, name, src_dir_fd=inside, dst_dir_fd=inside)
        file_systems.sync_names(inside)
    except BaseException:
        if part in os.listdir(inside):
            os.unlink(part, dir_fd=inside)
        raise


def _open_part(inside: int, part: str) -> int:
    """A new file without a name (open(2), O_TMPFILE), or named `part` if that is not supported."""
    try:
        return os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=inside)
    except OSError as error:
        if error.errno not in NO_NAMELESS:
            raise
    return os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=inside)
