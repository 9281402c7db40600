"""Folders that results go to: nothing of the user's is overwritten there.

A folder is ours if it is new, empty, or has our mark, which whoever writes into it leaves first: so a job
that is started again, and a second inference, write over what the first one wrote, and over nothing else.
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
    """Whether there is a device, a pipe or a socket: reading may never end, and a result would replace it."""
    return path.exists() and not (path.is_file() or path.is_dir())


def check_file(file: Path, option: str) -> Path:
    """Where a file of that name is written, at the end of its links. Raises UserError for what is none."""
    if special(file) or file.is_dir():
        kind = "a folder" if file.is_dir() else "a device or a pipe"
        raise UserError(f"{option} {file} is {kind}, not a file: name a file")
    return Path(os.path.realpath(file))


def is_marked(folder: str) -> bool:
    """Whether it holds results."""
    return os.path.lexists(os.path.join(folder, MARK))


def check(folder: Path, option: str, own: Path | None = None) -> None:
    """Raises UserError unless `folder` may be written into; `own`: a folder that is ours anyway."""
    if own is not None and folder.resolve().is_relative_to(own.resolve()):
        return
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{option} {folder}: {error.strerror}; name a folder that is new or empty") from None
    if names and MARK not in names:
        raise UserError(
            f"{option} {folder} contains other files, which results could overwrite: name a folder that is "
            "new or empty"
        )


def claim(folder: Path, option: str, own: Path | None = None) -> None:
    """Makes the folder and leaves the mark. Raises UserError as `check`, and where it cannot be made."""
    check(folder, option, own)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{option} {folder} cannot be written to: {error.strerror}") from None


@contextlib.contextmanager
def held(folder: Path, alone: bool = False) -> Iterator[None]:
    """A claimed folder while results are written, by any number of processes; `alone`: while there is nobody
    else, OSError if there is, or if the file system cannot tell."""
    file = os.open(folder / MARK, os.O_RDWR)
    try:
        with contextlib.nullcontext() if alone else contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(file)


def check_apart(inputs: Iterable[Path], targets: Iterable[Path]) -> None:
    """Raises UserError if a result would be written over one of the files that are read, by whatever name.

    Kept in memory is only what is there already of `targets`, which are gone through first.
    """
    there = {found for target in targets if (found := identity(target))}
    for path in inputs if there else ():
        if identity(path) in there:
            raise UserError(f"{path} would be overwritten by a result: choose another --out")


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file, the same by all its names; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
