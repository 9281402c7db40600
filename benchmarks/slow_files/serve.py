"""`PYTHON serve.py MOUNTPOINT MILLISECONDS`: all files of this machine below MOUNTPOINT, by FUSE, where each
metadata call takes that much longer. Needs libfuse 3 and mfusepy; ends when it is unmounted.

Names and attributes are held for a second, as network file systems do; names that are not there are not.
"""

import contextlib
import errno
import functools
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import mfusepy

TIMES = ("st_atime", "st_ctime", "st_mtime")
NUMBERS = ("st_gid", "st_ino", "st_mode", "st_nlink", "st_size", "st_uid", "st_blocks", "st_dev")
SPACE = (
    "f_bavail",
    "f_bfree",
    "f_blocks",
    "f_bsize",
    "f_favail",
    "f_ffree",
    "f_files",
    "f_frsize",
    "f_namemax",
)


class Slow(mfusepy.Operations):
    use_ns = True

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        status = os.fstat(fh) if fh else os.lstat(path)
        found = {name: getattr(status, name) for name in NUMBERS}
        return found | {name: getattr(status, f"{name}_ns") for name in TIMES}

    def access(self, path: str, amode: int) -> int:
        if not os.access(path, amode):
            raise OSError(errno.EACCES, path)
        return 0

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:  # noqa: ARG002
        for name in (".", "..", *os.listdir(path)):
            status = os.lstat(os.path.join(path, name))
            yield name, {"st_ino": status.st_ino, "st_mode": status.st_mode}, 0

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(path)
        return {name: getattr(found, name) for name in SPACE}

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def symlink(self, target: str, source: str) -> None:
        os.symlink(source, target)

    def link(self, target: str, source: str) -> None:
        os.link(source, target)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(path, uid, gid, follow_symlinks=False)

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        moment = times or (time.time_ns(), time.time_ns())
        os.utime(path, ns=moment, follow_symlinks=False)

    def open(self, path: str, flags: int) -> int:
        # The kernel keeps the position, and may read what is only written (a page's rest).
        flags &= ~(os.O_APPEND | os.O_EXCL | os.O_CREAT)
        return os.open(path, flags & ~os.O_WRONLY | os.O_RDWR if flags & os.O_WRONLY else flags)

    def create(self, path: str, mode: int, fi: Any = None) -> int:  # noqa: ARG002
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:  # noqa: ARG002
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:  # noqa: ARG002
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        os.truncate(fh or path, length)

    def fsync(self, path: str, datasync: int, fh: int) -> None:  # noqa: ARG002
        os.fsync(fh)

    def release(self, path: str, fh: int) -> None:  # noqa: ARG002
        os.close(fh)


METADATA = (
    *("getattr", "access", "readdir", "statfs", "readlink", "mkdir", "rmdir", "unlink", "symlink", "link"),
    *("rename", "chmod", "chown", "utimens", "open", "create", "truncate"),
)


def slow(method: Any, delay: float) -> Any:
    @functools.wraps(method)
    def call(*arguments: Any) -> Any:
        time.sleep(delay)
        return method(*arguments)

    return call


if __name__ == "__main__":
    mountpoint, milliseconds = sys.argv[1:]
    for name in METADATA:
        setattr(Slow, name, slow(getattr(Slow, name), float(milliseconds) / 1000))
    with contextlib.suppress(KeyboardInterrupt):
        mfusepy.FUSE(
            Slow(),
            mountpoint,
            foreground=True,
            nothreads=False,
            allow_other=True,
            auto_cache=True,
            use_ino=True,
            entry_timeout=1,
            attr_timeout=1,
            fsname="slow",
        )
