"""Files and folders that belong to this user alone, in places where others may have been first, such as /tmp.

A name that others can guess may be taken by the time it is used: by a link to elsewhere, or by a file that
they have locked. Whatever is opened here is checked once it is open, so it cannot be exchanged in between.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys

from jobs.run.errors import UserError

TYPE_CHECKING = False  # mypy takes it for typing's, which would cost an import (image.py)
if TYPE_CHECKING:
    from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)
"""Errors of a file system without locks, such as Lustre mounted without `flock`."""
_NOT_SUCH = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.ENXIO)


def folder(name: str) -> Path:
    """A folder on this machine for the purpose `name`, which nobody else can enter; always the same one.

    Below /tmp (or $TMPDIR); if somebody else has taken the name there, below the home directory, which is
    printed. Raises UserError if neither is possible.
    """
    import tempfile
    from pathlib import Path

    there = Path(tempfile.gettempdir()) / f"baton-{os.geteuid()}"
    try:
        os.close(open_folder(there))
    except (UserError, OSError) as error:
        home = Path.home() / ".cache" / "baton"
        print(f"baton: {error}; using {home}", file=sys.stderr, flush=True)
        there = home
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            os.close(open_folder(home))
        except OSError as trouble:
            raise UserError(f"{error}, and {trouble}: set TMPDIR to a folder of your own") from None
    inner = there / name
    inner.mkdir(mode=0o700, exist_ok=True)
    return inner


def own(path: Path) -> None:
    """Makes a folder and its parents, or uses the existing one; nobody else can enter it.

    Raises UserError if it is somebody else's, OSError as `mkdir` does.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(open_folder(path))


def open_own(path: Path) -> int:
    """A descriptor of the file at `path`, created if missing, which only its owner can read and write.

    Opens it with O_CREAT: a network file system may cache for a minute that a file does not exist, but asks
    the server when it is to create it.

    Raises UserError if there is anything else than such a file of this user's; OSError as `open` does.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in _NOT_SUCH and os.path.lexists(path):
            raise UserError(f"{path} is not this user's own file ({_whose(path)}): remove it") from None
        raise
    return _checked(fd, path, "file")


def lock_alone(fd: int) -> bool:
    """Takes an exclusive lock; False if somebody else holds one. True on a file system without locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def try_lock(fd: int, what: str) -> bool:
    """`lock_alone`, and writes into the file who holds the lock and for `what`."""
    if not lock_alone(fd):
        return False
    import contextlib

    with contextlib.suppress(OSError):  # on a full disk, the file does not say who
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{what} (process {os.getpid()} on {os.uname().nodename})".encode(), 0)
    return True


def holder(path: Path) -> str:
    """Who holds a lock, according to its file."""
    try:
        return path.read_text(errors="replace")[:200].strip() or "somebody who has not said who"
    except OSError:
        return "somebody"


def make_folder(path: str | Path) -> None:
    """Makes a folder that nobody else can enter, unless `path` exists. Raises OSError as `mkdir` does."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return


def open_folder(path: str | Path, make: bool = True) -> int:
    """A descriptor of the folder at `path`, which only this user can enter; created if missing and `make`.

    As `dir_fd`, it looks names up in that folder, whatever happens to `path` meanwhile. Raises UserError if
    there is anything else than such a folder of this user's; OSError as `mkdir` and `open` do.
    """
    if make:
        make_folder(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NOT_SUCH:
            raise UserError(f"{path} is not this user's own folder ({_whose(path)})") from None
        raise
    return _checked(fd, path, "folder")


def _checked(fd: int, path: str | Path, kind: str) -> int:
    """`fd`, if `_check` passes; otherwise closes it and re-raises."""
    try:
        _check(fd, path, kind)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(fd: int, path: str | Path, kind: str) -> None:
    """Raises UserError unless what is open is this user's, has no other name, and is closed to others."""
    status = os.fstat(fd)
    right = stat.S_ISREG(status.st_mode) if kind == "file" else stat.S_ISDIR(status.st_mode)
    if not right or status.st_uid != os.geteuid() or (kind == "file" and status.st_nlink > 1):
        raise UserError(f"{path} is not this user's own {kind} ({_whose(path)}): remove it")
    if stat.S_IMODE(status.st_mode) & 0o077:
        import contextlib

        with contextlib.suppress(PermissionError):  # even for the owner: it has no modes
            os.fchmod(fd, 0o600 if kind == "file" else 0o700)
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
            raise UserError(f"{path}: this file system ignores modes and lets others in; use another one")


def _whose(path: str | Path) -> str:
    """A description of what is at `path` instead."""
    try:
        status = os.lstat(path)
    except OSError as error:
        return str(error.strerror)
    kinds = {
        stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file", stat.S_IFIFO: "a pipe"
    }  # fmt: skip
    names = "under several names, " if stat.S_ISREG(status.st_mode) and status.st_nlink > 1 else ""
    return f"{kinds.get(stat.S_IFMT(status.st_mode), 'something else')}, {names}of {user(status.st_uid)}"


def user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
