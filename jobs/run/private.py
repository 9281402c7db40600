"""Files and folders that are this user's own, in places where others may have been first (/tmp, say).

A name that others can guess may be theirs by the time it is used: a link to somewhere else, a file that they
hold a lock on. What is opened here is looked at once it is open, so it cannot be exchanged in between.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys

from jobs.run.errors import UserError

TYPE_CHECKING = False  # which mypy takes for typing's, whose import is not for nothing (image.py)
if TYPE_CHECKING:
    from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)
"""What a file system says that has no locks, as Lustre that is mounted without `flock`."""
_NOT_SUCH = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.ENXIO)


def folder(name: str) -> Path:
    """A folder of this machine's for what `name` says, which nobody else can enter, always the same one.

    Below /tmp (or $TMPDIR); if somebody else has taken the name there, below the home directory, and the log
    says so. Raises UserError if neither can be had.
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
    """Makes a folder, and those above it, or takes the one there is; nobody else can enter it.

    Raises UserError if it is somebody else's, OSError as `mkdir`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(open_folder(path))


def open_own(path: Path) -> int:
    """A descriptor of the file at `path`, made if there is none, that its owner alone can read and write.

    It is created in one go with looking for it: a network file system may go on saying for a minute that a
    file that it was asked for before is not there, but asks the server when it is to create it.

    Raises UserError where there is anything else than such a file of this user's; OSError as `open`.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in _NOT_SUCH and os.path.lexists(path):
            raise UserError(f"{path} is not this user's own file ({_whose(path)}): remove it") from None
        raise
    return _checked(fd, path, "file")


def lock_alone(fd: int) -> bool:
    """False while somebody else holds a lock on what is open; True too where the file system has no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def try_lock(fd: int, what: str) -> bool:
    """`lock_alone`; the file then says who has it, until the descriptor closes."""
    if not lock_alone(fd):
        return False
    import contextlib

    with contextlib.suppress(OSError):  # on a full disk nobody is told who
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{what} (process {os.getpid()} on {os.uname().nodename})".encode(), 0)
    return True


def holder(path: Path) -> str:
    """Who says in a lock's file that he holds it."""
    try:
        return path.read_text(errors="replace")[:200].strip() or "somebody who has not said who"
    except OSError:
        return "somebody"


def make_folder(path: str | Path) -> None:
    """Makes a folder that nobody else can enter, unless there is one at `path`. OSError as `mkdir`."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return


def open_folder(path: str | Path, make: bool = True) -> int:
    """A descriptor of the folder at `path`, which nobody but this user can enter; made if there is none.

    With it as `dir_fd` names are looked up in that folder, whatever becomes of `path` meanwhile. Raises
    UserError where there is anything else than such a folder of this user's; OSError as `mkdir` and `open`.
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
    """The descriptor, or closes it if there is an error."""
    try:
        _check(fd, path, kind)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(fd: int, path: str | Path, kind: str) -> None:
    """Raises UserError unless what is open is this user's own, under this one name, and closed to others."""
    status = os.fstat(fd)
    right = stat.S_ISREG(status.st_mode) if kind == "file" else stat.S_ISDIR(status.st_mode)
    if not right or status.st_uid != os.geteuid() or (kind == "file" and status.st_nlink > 1):
        raise UserError(f"{path} is not this user's own {kind} ({_whose(path)}): remove it")
    if stat.S_IMODE(status.st_mode) & 0o077:
        import contextlib

        with contextlib.suppress(PermissionError):  # of an owner: it has no modes
            os.fchmod(fd, 0o600 if kind == "file" else 0o700)
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
            raise UserError(f"{path}: this file system ignores modes and lets others in; use another one")


def _whose(path: str | Path) -> str:
    """What is there instead, in words."""
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
