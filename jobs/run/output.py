"""Folders for results: nothing of the user's is overwritten in them.

A folder is ours if it is new, empty, or has our mark, which is left before anything is written. So a job that
is started again, and a second inference, overwrite what the first one wrote, and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from jobs.run.errors import UserError

MARK = ".baton-results"


def special(path: Path) -> bool:
    """Whether a path is a device, pipe or socket: reading may never end, and a result would replace it."""
    return path.exists() and not (path.is_file() or path.is_dir())


def check_file(file: Path, option: str) -> Path:
    """The path to write, with links resolved. Raises UserError if it is something other than a file."""
    if special(file) or file.is_dir():
        kind = "a folder" if file.is_dir() else "a device or a pipe"
        raise UserError(f"{option} {file} is {kind}, not a file: name a file")
    return Path(os.path.realpath(file))


def is_marked(folder: str) -> bool:
    """Whether a folder has our mark."""
    return os.path.lexists(os.path.join(folder, MARK))


def check(folder: Path, own: Path | None) -> None:
    """Raises UserError unless --out may be `folder`; `own`: a folder that is ours anyway."""
    if own is not None and folder.resolve().is_relative_to(own.resolve()):
        return
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}; name a folder that is new or empty") from None
    if names and MARK not in names:
        raise UserError(
            f"--out {folder} contains other files, which results could overwrite: name a folder that is "
            "new or empty"
        )


def claim(folder: Path, own: Path | None = None) -> None:
    """Makes the folder and leaves the mark. Raises UserError as `check`, and if it cannot be written."""
    check(folder, own)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"--out {folder} cannot be written to: {error.strerror}") from None


@contextlib.contextmanager
def held(folder: Path, alone: bool = False) -> Iterator[None]:
    """Holds a lock on a claimed folder while results are written: shared, or with `alone` exclusive; then
    raises OSError if another process holds it, or if the file system has no locks."""
    file = os.open(folder / MARK, os.O_RDWR)
    try:
        with contextlib.nullcontext() if alone else contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(file)


def check_apart(inputs: Iterable[Path], targets: Iterable[Path]) -> None:
    """Raises UserError if a result would overwrite an input file, by whatever name.

    Only existing `targets` are kept in memory; these are iterated first.
    """
    there = {found for target in targets if (found := identity(target))}
    for path in inputs if there else ():
        if identity(path) in there:
            raise UserError(f"{path} would be overwritten by a result: choose another --out")


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file, the same for all its names; None if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
