"""A packed dataset: all its files in one uncompressed zip file, read by offset. Imports nothing heavy.

DATA/FOLDER/packed.zip     every file of the dataset, by its path below FOLDER (the .ZIP format, APPNOTE 6.3,
                           method 0 "stored", so any tool opens it)
DATA/FOLDER/…              manifest, digests and lists beside it, as in the unpacked tree

The file is opened once per process and read with `pread`, which moves no file position: forked workers can
share their parent's descriptor. Where copies are made on the node (staged.py), each process switches to the
copy once it exists, and back if its disk fails.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from jobs.run import staged
from jobs.run.errors import UserError

NAME = "packed.zip"
HEADER = struct.Struct("<4s22xHH")
"""A member's local header: signature; lengths of the name and the extra field, which precede the content.
(The central directory repeats the name, but may have a different extra field.)"""
ENTRY = 46
"""Bytes of a central directory entry before its name."""
FIELDS = {
    "needed": ("<u2", 6), "flags": ("<u2", 8), "method": ("<u2", 10), "crc": ("<u4", 16),
    "packed": ("<u4", 20), "size": ("<u4", 24), "named": ("<u2", 28), "extra": ("<u2", 30),
    "noted": ("<u2", 32), "offset": ("<u4", 42),
}  # fmt: skip
"""Its fields, as NumPy's (format, offset): version needed, flags, method, CRC-32, compressed and uncompressed
size, lengths of name, extra field and comment, offset of the member."""
END, END64, LOCATOR = struct.Struct("<4s6xHLLH"), struct.Struct("<4s20x8xQQQ"), struct.Struct("<4sLQL")
"""The central directory's end. END: signature, members, bytes of the directory, its offset, length of the
comment. With many members or gigabytes, END64 and a LOCATOR precede it: signature, members, bytes, offset."""
NEEDED = 45
"""The version of the format that has END64."""
FAR = 0xFFFFFFFF
"""Replaces a number that is too large for its field."""
ASCII, UTF8 = 0, 0x800
"""Flags of a member with such a name and nothing else unusual."""
SLACK = 64
"""Bytes read in addition to a member, for its extra field, so that one call fetches all of it."""


LOOK_SECONDS = 2.0
"""Minimum seconds between a process's checks for a copy."""


class Place(NamedTuple):
    offset: int
    """Offset of the member's local header."""
    size: int
    crc: int


class Places(Mapping[str, Place]):
    """Name -> Place of the members. Kept in columns: making a tuple for each takes longer than the rest."""

    def __init__(self, names: Iterable[str], *columns: array[int]) -> None:
        self._columns = columns
        self._rows = dict(zip(names, range(len(columns[0])), strict=True))

    def __getitem__(self, name: str) -> Place:
        row = self._rows[name]
        return Place(*(column[row] for column in self._columns))

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class Container:
    """An open container. Raises UserError for a file that is not one, OSError if it cannot be opened.

    `stage`: where there may be a copy of it later.
    """

    def __init__(self, path: Path, stage: Path | None = None) -> None:
        self.path, self._stage = path, stage
        self._look_at = float("inf") if stage is None else 0.0
        self.local = False
        """Whether the copy is being read now."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.status = os.fstat(self._fd)
        try:
            files = _own_directory(self._fd, self.status.st_size)
            self.files, others = (files, 0) if files else _directory(self._fd, self.status.st_size)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
            self.close()
            raise UserError(f"{path} is damaged ({error}): prepare it again") from None
        except BaseException:
            self.close()
            raise
        if others:
            self.close()
            raise UserError(
                f"{path} was made by another program: {others:,} of its files are compressed or occur twice; "
                "prepare it again"
            )

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if hasattr(self, "_fd") and os is not None:  # else the modules are gone: the process ends
            self.close()

    def read(self, name: str) -> bytes:
        """A member's content. Raises KeyError for an unknown name, UserError for a damaged container."""
        if self._look_at < time.monotonic():
            self._look()
        if self.local:
            with contextlib.suppress(OSError, UserError):
                content = self._read(name)
                if zlib.crc32(content) == self.files[name].crc:
                    return content
            self._leave_copy()
        return self._read(name)

    def _look(self) -> None:
        """Switches to the copy if there is one. The descriptor keeps its number, so a concurrent read in
        another thread reads either file."""
        assert self._stage is not None
        self._look_at = time.monotonic() + LOOK_SECONDS
        copy = staged.open_copy(self._stage, self.path, self.status)
        if copy is not None:
            self._exchange(copy)
            self.local, self._look_at = True, float("inf")

    def _leave_copy(self) -> None:
        """Switches back to the shared file, for good. Raises UserError if that has been replaced."""
        assert self._stage is not None
        print(
            f"baton: the copy of {self.path} in {self._stage} is damaged: going on with the shared file",
            flush=True,
        )
        shared = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        if staged.name(self.path, os.fstat(shared)) != staged.name(self.path, self.status):
            os.close(shared)
            raise UserError(
                f"{self.path} was replaced while a training was reading it: start the training again"
            )
        self._exchange(shared)
        self.local = False
        staged.discard(self._stage, self.path, self.status)

    def _exchange(self, other: int) -> None:
        os.dup2(other, self._fd, inheritable=False)
        os.close(other)

    def _read(self, name: str) -> bytes:
        place = self.files[name]
        before = HEADER.size + len(name.encode())
        block = os.pread(self._fd, before + SLACK + place.size, place.offset)
        if len(block) < before:
            raise self._torn(name)
        signature, named, extra = HEADER.unpack_from(block)
        begin = HEADER.size + named + extra
        if signature != b"PK\3\4" or block[HEADER.size : HEADER.size + named] != name.encode():
            raise self._torn(name)
        content = block[begin : begin + place.size]
        while len(content) < place.size:  # a large file, or an unusually long extra field
            more = os.pread(self._fd, place.size - len(content), place.offset + begin + len(content))
            if not more:
                raise self._torn(name)
            content += more
        return content

    def _torn(self, name: str) -> UserError:
        return UserError(f"{self.path} is damaged: {name} is not where it should be; prepare it again")

    def has_folder(self, name: str) -> bool:
        """As `name in folders()`, without building all of that, which would delay a start."""
        return not name or any(file.startswith(f"{name}/") for file in self.files)

    @cached_property
    def folders(self) -> dict[str, tuple[list[str], list[str]]]:
        """Folder -> (sorted names of folders, of files) in it; "" is the top."""
        found: dict[str, tuple[set[str], set[str]]] = {"": (set(), set())}
        for name in self.files:
            folder, _, last = name.rpartition("/")
            found.setdefault(folder, (set(), set()))[1].add(last)
            while folder:
                above, _, last = folder.rpartition("/")
                inner = found.setdefault(above, (set(), set()))[0]
                if last in inner:  # and so all above it
                    break
                inner.add(last)
                folder = above
        return {folder: (sorted(inner), sorted(files)) for folder, (inner, files) in found.items()}


def _directory(fd: int, total: int) -> tuple[Mapping[str, Place], int]:
    """The places of all members that can be read by offset, and the number of others. Raises BadZipFile, or
    whatever else zipfile raises, for a file that is not a zip, and ValueError for a member that would lie
    outside of it: `read` allocates as much memory as the directory claims."""
    with open(fd, "rb", closefd=False) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    files = {
        one.filename: Place(one.header_offset, one.file_size, one.CRC)
        for one in members
        if one.compress_type == zipfile.ZIP_STORED and one.compress_size == one.file_size
    }
    for name, (offset, size, _) in files.items():
        if offset < 0 or offset + HEADER.size + size > total:
            raise ValueError(f"{name!r} lies outside of it")
    return files, len(members) - len(files)


def _own_directory(fd: int, total: int) -> Mapping[str, Place] | None:
    """The places of all members of a container as written by prepare.py, in a tenth of zipfile's time, which
    would delay each start; None for any other file."""
    ends = END64.size + LOCATOR.size + END.size
    tail = os.pread(fd, ends, max(0, total - ends))
    if len(tail) < ends:
        return None
    signature, count, size, begin, comment = END.unpack_from(tail, len(tail) - END.size)
    end = total - END.size
    if signature != b"PK\5\6" or comment:
        return None
    if tail[END64.size :].startswith(b"PK\6\7"):
        end = total - ends
        signature, count, size, begin = END64.unpack_from(tail)
        if signature != b"PK\6\6" or LOCATOR.unpack_from(tail, END64.size)[1:] != (0, end, 1):
            return None
    if begin + size != end or count * ENTRY > size:
        return None
    content = b""
    while len(content) < size:
        more = os.pread(fd, size - len(content), begin + len(content))
        if not more:
            return None
        content += more
    return _members(content, count, total) if count else None


def _members(content: bytes, count: int, total: int) -> Places | None:
    """The places of the members in a central directory with this content; None if it has anything unusual."""
    import numpy as np

    raw = np.frombuffer(content, np.uint8)
    starts = np.flatnonzero(raw[: 1 - ENTRY] == ord("P"))
    for offset, byte in enumerate(b"K\1\2", start=1):
        starts = starts[raw[starts + offset] == byte]
    if len(starts) != count:
        return None
    formats, begins = zip(*FIELDS.values(), strict=True)
    kind = np.dtype({"names": list(FIELDS), "formats": formats, "offsets": begins, "itemsize": ENTRY})
    heads = np.lib.stride_tricks.sliding_window_view(raw, ENTRY)[starts].view(kind)[:, 0]
    ends = starts + ENTRY + heads["named"]
    follows = ends + heads["extra"] + heads["noted"]
    # If each entry begins where the one before ends, no name contains what looks like an entry.
    if starts[0] != 0 or (starts[1:] != follows[:-1]).any() or follows[-1] != len(content):
        return None
    sizes, packed, offsets = (heads[name].astype(np.uint64) for name in ("size", "packed", "offset"))
    for at in np.flatnonzero(heads["extra"]).tolist():
        extra = content[ends[at] : ends[at] + heads["extra"][at]]
        far = _far(extra, int(sizes[at]), int(packed[at]), int(offsets[at]))
        if far is None:
            return None
        sizes[at], packed[at], offsets[at] = far
    names = [content[begin:end] for begin, end in zip((starts + ENTRY).tolist(), ends.tolist(), strict=True)]
    unusual = (heads["needed"] > NEEDED) | (heads["method"] != 0) | (packed != sizes)
    unusual |= (heads["flags"] != ASCII) & (heads["flags"] != UTF8)
    unusual |= (sizes > total) | (offsets > total) | (offsets + sizes + HEADER.size > total)
    if unusual.any() or b"\0" in b"".join(names):
        return None
    if not all(names[at].isascii() for at in np.flatnonzero(heads["flags"] == ASCII).tolist()):
        return None
    columns = (array("Q", column.tobytes()) for column in (offsets, sizes, heads["crc"].astype(np.uint64)))
    files = Places(map(bytes.decode, names), *columns)
    return files if len(files) == count else None


def _far(extra: bytes, *values: int) -> list[int] | None:
    """A member's sizes and offset; those that are FAR are in its extra field, under the id 1 (APPNOTE 4.5.3).
    None if that holds anything else."""
    size = 8 * values.count(FAR)
    if extra[:4] != struct.pack("<HH", 1, size) or len(extra) != 4 + size:
        return None
    found = iter(struct.unpack_from(f"<{size // 8}Q", extra, 4))
    return [next(found) if value == FAR else value for value in values]


def opened(path: Path) -> Container:
    """The container, opened once per process unless the file changes: reading its directory takes longer than
    reading a batch of its files. Raises what `Container` raises."""
    status = path.stat()
    return _opened(path, status.st_ino, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(path: Path, *_: int) -> Container:
    return Container(path)


def locate(path: Path) -> tuple[Path, str] | None:
    """(container file, path in it) if `path` is in a packed dataset, else None. The path itself need not
    exist."""
    real = Path(os.path.realpath(path))
    for above in (real, *real.parents):
        if (above / NAME).is_file():
            inner = real.relative_to(above).as_posix()
            return above / NAME, "" if inner == "." else inner
    return None
