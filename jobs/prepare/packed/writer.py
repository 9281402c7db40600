"""Writes a packed dataset's container, from several processes of this machine at once.

Each file is appended to the container, header and content in one write; finally, one process writes the
directory, which makes it a zip file. Files not listed there are gaps, which the format allows. An interrupted
container is started anew: without its directory, it is unknown which files are complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jobs.catalog import own_images
from jobs.catalog.manifest import Entry
from jobs.run import packed, private
from jobs.run.deflate import content_digest
from jobs.run.errors import UserError

BESIDE = 7
"""The most lists (.txt) that are also kept beside the container, for readers that open them by path: with
container, manifest and digests, ten files. If there are more, they are not lists but annotations."""


@dataclass(frozen=True)
class Placed(Entry):
    """A file in a container."""

    offset: int
    """Offset of its header."""


_opened: dict[Path, tuple[int, int]] = {}
"""This process's descriptors of the container and its lock. A worker keeps them until it exits, when the
container is complete."""


def _open(path: Path, lock: Path) -> tuple[int, int]:
    if path not in _opened:
        _opened[path] = os.open(path, os.O_RDWR | os.O_CLOEXEC), private.open_own(lock)
    return _opened[path]


class Writer:
    """A container being written at `folder`/packed.zip; can be sent to other processes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / packed.NAME
        # On this machine, like all writers: a shared file system may have no locks.
        name = hashlib.blake2b(os.fsencode(self.path.absolute()), digest_size=8).hexdigest()
        self.lock = private.folder("pack") / name

    def __enter__(self) -> Writer:
        self.path.unlink(missing_ok=True)
        self.path.touch(mode=0o644)
        return self

    def __exit__(self, *_: object) -> None:
        for fd in _opened.pop(self.path, ()):
            os.close(fd)
        self.lock.unlink(missing_ok=True)

    def put(self, path: str, content: bytes) -> Placed:
        """Appends a file; returns where. Raises OSError, for example on a full disk."""
        file, lock = _open(self.path, self.lock)
        digest = content_digest(content)
        header = _info(path, len(content), digest).FileHeader()
        self._take(lock)
        try:
            begin = at = os.fstat(file).st_size
            view = memoryview(header + content)
            while view:  # a nearly full disk takes a part, and reports the error only at the next write
                wrote = os.pwrite(file, view, at)
                at, view = at + wrote, view[wrote:]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
        return Placed(path, len(content), digest, begin)

    def _take(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in private.NO_LOCKS:
                raise
            raise UserError(
                f"{self.lock.parent} is on a file system without file locks, which packing needs: set TMPDIR "
                "to a folder on this machine's own disk"
            ) from None

    def content(self, entry: Placed) -> bytes:
        """The content that was put there."""
        file, _ = _open(self.path, self.lock)
        header = len(_info(entry.path, entry.size, entry.digest).FileHeader())
        return os.pread(file, entry.size, entry.offset + header)

    def finish(self, entries: Iterable[Placed]) -> None:
        """Writes the central directory; of all files put, `entries` are the dataset."""
        with self.path.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            with zipfile.ZipFile(file, "w") as archive:  # starts at the file's current position
                for entry in sorted(entries, key=lambda entry: entry.path):
                    one = _info(entry.path, entry.size, entry.digest)
                    one.header_offset = entry.offset
                    archive.filelist.append(one)


def _info(path: str, size: int, digest: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(path)  # with the format's first date: the same content makes the same header
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.file_size = info.compress_size = size
    info.CRC = int(digest, 16)
    return info


def beside(entries: Iterable[Entry]) -> list[Entry]:
    """The files that are also kept beside the container: lists, and the description of one's own dataset."""
    entries = list(entries)
    of_own = (own_images.DESCRIPTION, own_images.SHEET, own_images.FINDINGS)
    return lists_of(entries) + [entry for entry in entries if entry.path in of_own]


def lists_of(entries: Iterable[Entry]) -> list[Entry]:
    """The dataset's lists; none if there are too many to be lists."""
    lists = [entry for entry in entries if entry.path.endswith(".txt")]
    return lists if len(lists) <= BESIDE else []
