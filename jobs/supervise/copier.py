"""`python -m jobs.supervise.copier CONTAINER STAGE FD`: copies a packed dataset to this node's own disk.

A process beside the training, which goes on reading the shared file until the copy has its name. Whoever
comes second, another run say, waits for the first and finds the copy. Its answer is a line of JSON on FD: the
fields of an event `staged` or `not_staged`. Whatever goes wrong is said there and harms no run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.catalog import manifest
from jobs.run import file_systems, packed, private, staged
from jobs.run.errors import UserError

CHUNK = 8 << 20
OLD_SECONDS = 14 * 86400.0
"""An unused copy goes after that time in any case, others when their room is needed."""
KEPT_FREE = 0.05
"""Share of the file system that is left to others."""
NO_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
"""What a file system says that has no files without a name."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main() -> int:
    container, stage, answer = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    os.set_inheritable(answer, False)
    os.nice(19)  # the training's processes come first
    began = time.monotonic()
    try:
        done = copy(container, stage)
        event: dict[str, Any] = {"event": "staged", "seconds": round(time.monotonic() - began, 1), **done}
    except UserError as error:
        event = {"event": "not_staged", "reason": str(error)}
    except OSError as error:
        reason = f"{stage} is full" if error.errno in FULL else str(error)
        event = {"event": "not_staged", "reason": reason}
    os.write(answer, json.dumps(event | {"path": str(container)}).encode())
    return 0


def copy(container: Path, stage: Path) -> dict[str, Any]:
    """Sees to it that a whole and verified copy is there: `copy` is where, `bytes` its size, `found` is there
    if it had been there already.

    Raises UserError where there can be none, OSError for what a file system raises, with nothing left behind.
    """
    with closing(os.open(container, os.O_RDONLY | os.O_CLOEXEC)) as source:
        status = os.fstat(source)
        name = staged.name(container, status)
        with closing(open_folder(stage)) as inside, closing(open_lock(inside)):
            remove_remains(inside)
            done = {"copy": str(staged.folder(stage) / name), "bytes": status.st_size}
            if (there := staged.open_copy(stage, container, status)) is not None:
                os.close(there)
                return done | {"found": True}
            make_room(inside, status.st_size, stage)
            _make(source, inside, name, container)
            return done


def open_folder(stage: Path) -> int:
    """Makes what the last part of `stage` names, if need be: /local/$USER, say, where /local is there."""
    try:
        with contextlib.suppress(FileExistsError):
            stage.mkdir(mode=0o700)
        return private.open_folder(staged.folder(stage))
    except FileNotFoundError:
        raise UserError(f"{socket.gethostname()} has no {stage}") from None
    except OSError as error:
        raise UserError(f"{stage} cannot be written on {socket.gethostname()}: {error.strerror}") from None


def open_lock(inside: int, name: str = "lock") -> int:
    """Waits for a lock of the folder; it ends with the descriptor, and so with the process."""
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=inside)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return fd


def remove_remains(inside: int, kind: str = staged.DATASET) -> None:
    """What copiers left that died: the lock of this kind is ours, so none is at work."""
    for name in os.listdir(inside):
        if name.endswith(".part") and (staged.ENVIRONMENT in name) == (kind == staged.ENVIRONMENT):
            remove(inside, name)


def remove(inside: int, name: str) -> None:
    """Removes a copy, file or folder, or what there is of it. A folder loses its name first, so that nobody
    finds a part of it."""
    try:
        os.unlink(name, dir_fd=inside)
    except IsADirectoryError:
        part = f"{name}.{os.getpid()}.part"
        os.rename(name, part, src_dir_fd=inside, dst_dir_fd=inside)
        with contextlib.suppress(FileNotFoundError):  # another has found it without its name
            shutil.rmtree(f"/proc/self/fd/{inside}/{part}")


def make_room(inside: int, size: int, stage: Path) -> None:
    """Evicts copies that nobody reads: the old ones, and of the others, the longest unused first, as many as
    `size` bytes need. Raises UserError, having evicted only old ones, if that would not do."""
    unused = sorted(_unused(inside))
    for used, _, name in unused:
        if time.time() - used > OLD_SECONDS:
            remove(inside, name)
    unused = [one for one in unused if time.time() - one[0] <= OLD_SECONDS]
    whole = os.statvfs(inside)
    missing = size + int(KEPT_FREE * whole.f_blocks * whole.f_frsize) - file_systems.room(inside)
    if missing > sum(size for _, size, _ in unused):
        free = max(0, size - missing)
        raise UserError(
            f"{stage} on {socket.gethostname()} has room for {free / 1e9:,.1f} GB, and {size / 1e9:,.1f} GB "
            "are needed"
        )
    for _, freed, name in unused:
        if missing <= 0:
            return
        remove(inside, name)
        missing -= freed


def _unused(inside: int) -> Iterator[tuple[float, int, str]]:
    """(time of the last use, bytes, name) of each copy that nobody reads."""
    for name in os.listdir(inside):
        kind = os.path.splitext(name)[1]
        fd = staged.open_inside(inside, name) if kind in (staged.DATASET, staged.ENVIRONMENT) else None
        if fd is None:
            continue
        with closing(fd), contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(fd)
            yield status.st_mtime, _size(fd) if kind == staged.ENVIRONMENT else status.st_size, name


def _size(folder: int) -> int:
    """Bytes of an environment's copy."""
    with open(os.open(staged.SIZE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)) as file:
        return int(file.read())


def _make(source: int, inside: int, name: str, container: Path) -> None:
    """Copies in one sequential pass, verifies what has come to lie on the disk, and only then gives it its
    name. Until then it has none, and goes with this process, where the file system can do that."""
    part = name.removesuffix(".zip") + ".part"
    try:
        with closing(_open_part(inside, part)) as fd:
            os.posix_fadvise(source, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            with open(fd, "wb", buffering=0, closefd=False) as file:
                while chunk := memoryview(os.read(source, CHUNK)):
                    while chunk:
                        chunk = chunk[file.write(chunk) :]
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # so that it is read from there
            if staged.name(container, os.stat(container)) != name:
                raise UserError(f"{container} was replaced while it was copied")
            verify(Path(f"/proc/self/fd/{fd}"), container)
            with contextlib.suppress(FileExistsError):
                os.link(f"/proc/self/fd/{fd}", part, dst_dir_fd=inside, follow_symlinks=True)
            os.rename(part, name, src_dir_fd=inside, dst_dir_fd=inside)
        os.fsync(inside)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=inside)
        raise


def _open_part(inside: int, part: str) -> int:
    """A new file without a name (open(2), O_TMPFILE), or with this one where there are none such."""
    try:
        return os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=inside)
    except OSError as error:
        if error.errno not in NO_NAMELESS:
            raise
    return os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=inside)


def verify(copy: Path, container: Path) -> None:
    """Raises UserError unless the copy holds what was prepared: every file in it by its digest, and each that
    the dataset's table has by the table's."""
    made = packed.Container(copy)
    try:
        shared = packed.Container(container)
        shared.close()
        if made.files != shared.files:
            raise UserError(f"the copy of {container} is not like it")
        for name, place in made.files.items():
            if zlib.crc32(made.read(name)) != place.crc:
                raise _damaged(container, name)
        prepared = manifest.read(container.parent)
        for entry in manifest.read_files(container.parent, prepared) if prepared else []:
            found = made.files.get(entry.path)
            if found is None or f"{found.crc:08x}" != entry.digest:
                raise _damaged(container, entry.path)
    finally:
        made.close()


def _damaged(container: Path, name: str) -> UserError:
    return UserError(
        f"in the copy of {container} {name} is not what was prepared: if `prepare.py --verify deep` finds "
        "nothing, this node's disk is bad"
    )


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
