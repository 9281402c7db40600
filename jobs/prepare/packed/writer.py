"""Writes a packed dataset's container, from several processes of this machine at once.

Each file goes to the end of the container, header and content in one write; the directory, which makes a zip
of it, is written at last by one of them. What was written and is not listed there is a gap, which the format
allows. An interrupted container is begun anew: without its directory nobody knows what of it is whole.
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
"""Lists (.txt) that also lie beside the container, so that whoever opens them by path finds them: with the
container, manifest and digests ten files. Where there are more they are no lists but annotations."""


@dataclass(frozen=True)
class Placed(Entry):
    """A file in a container."""

    offset: int
    """Of its header."""


_opened: dict[Path, tuple[int, int]] = {}
"""Descriptors of this process: the container's and its lock's. A worker has them until it ends, which it does
when the container is made."""


def _open(path: Path, lock: Path) -> tuple[int, int]:
    if path not in _opened:
        _opened[path] = os.open(path, os.O_RDWR | os.O_CLOEXEC), private.open_own(lock)
    return _opened[path]


class Writer:
    """A container that is being made at `folder`/packed.zip; may be sent to other processes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / packed.NAME
        # On this machine, where all who write are: a shared file system may have no locks.
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
        """Appends a file; returns where. Raises OSError, for a full disk, say."""
        file, lock = _open(self.path, self.lock)
        digest = content_digest(content)
        header = _info(path, len(content), digest).FileHeader()
        self._take(lock)
        try:
            begin = at = os.fstat(file).st_size
            view = memoryview(header + content)
            while view:  # a nearly full disk takes a part and says so only the next time
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
        """What was put there."""
        file, _ = _open(self.path, self.lock)
        header = len(_info(entry.path, entry.size, entry.digest).FileHeader())
        return os.pread(file, entry.size, entry.offset + header)

    def finish(self, entries: Iterable[Placed]) -> None:
        """Writes the directory: of all that was put, `entries` are the dataset."""
        with self.path.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            with zipfile.ZipFile(file, "w") as archive:  # begins where the file stands
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
    """What of the dataset lies beside the container too: its lists, and what says what one's own is."""
    entries = list(entries)
    of_own = (own_images.DESCRIPTION, own_images.SHEET, own_images.FINDINGS)
    return lists_of(entries) + [entry for entry in entries if entry.path in of_own]


def lists_of(entries: Iterable[Entry]) -> list[Entry]:
    """The dataset's lists; none where they are too many for lists."""
    lists = [entry for entry in entries if entry.path.endswith(".txt")]
    return lists if len(lists) <= BESIDE else []
