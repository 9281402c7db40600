"""Thin, strict readers for the archives: any damage that Python's tarfile and GNU tar let pass is an error.

Both accept a plain tar that was truncated at a member boundary; tarfile accepts flipped bits and a missing
end of a gzip stream. Here the gzip checksum and length, every header's checksum and the two final zero blocks
are required. Nothing is extracted by name: `walk` yields members, and the caller picks exact, known names.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.run.deflate import GUNZIP_ERRORS, open_gzip
from jobs.run.errors import UserError

BLOCK = 512
CHUNK = 1 << 20

READ_ERRORS: tuple[type[Exception], ...] = (*GUNZIP_ERRORS, lzma.LZMAError, OSError)

MOST_HEADER = 1 << 20
"""The most bytes of a long name or pax header, which is read at once."""

MOST_CONTENT = 64 << 20
"""The most bytes of a member that is read at once (a mask, an image, a list); the release's have fewer."""


class DamagedArchive(UserError):
    """The archive is truncated, altered, or not what its name says."""


@dataclass(frozen=True)
class Member:
    name: str
    """Full path inside the archive, without a leading ./."""
    regular: bool
    """Whether it is a plain file, not a folder, link or device."""
    folder: bool
    offset: int
    """Where the content begins, in bytes of the (decompressed) archive."""
    size: int


class Stream:
    """A tar archive read sequentially, plain or compressed (gzip, bzip2, xz), detected by its first bytes.

    Use as a context manager. Raises DamagedArchive if it is neither.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self.packed = io.FileIO(path)
        start = self.packed.read(BLOCK)
        self.packed.seek(0)
        self.size: int | None = None
        if start[:2] == b"\x1f\x8b":
            self.file = open_gzip(self.packed)
        elif start[:3] == b"BZh":
            self.file = bz2.BZ2File(self.packed)
        elif start[:6] == b"\xfd7zXZ\0":
            self.file = lzma.LZMAFile(self.packed)  # noqa: SIM115 - closed by __exit__
        elif start[257:262] == b"ustar":
            self.file = io.BufferedReader(self.packed, CHUNK)
            self.size = os.fstat(self.packed.fileno()).st_size
        else:
            self.packed.close()
            what = "an HTML page" if looks_like_html(start) else "no tar archive"
            raise DamagedArchive(f"{path} is {what}: download it again")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.packed.close()

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes, fewer only at the end of the archive."""
        try:
            content = self.file.read(count)
        except READ_ERRORS as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DamagedArchive(
                f"{self.path} is damaged after {self.position:,} inflated bytes ({error}): download it again"
            ) from None
        self.position += len(content)
        return content

    def skip_to(self, position: int) -> None:
        """Skips forward. Raises DamagedArchive if the archive ends before that."""
        if self.size is not None:
            if position > self.size:
                raise self.cut_off()
            self.file.seek(position)
            self.position = position
        while self.position < position:
            if not self.read(min(CHUNK, position - self.position)):
                raise self.cut_off()

    def packed_position(self) -> int:
        """Bytes of the file on disk read so far, for progress; decompression reads some MB ahead."""
        return self.packed.tell() if self.size is None else self.position

    def cut_off(self) -> DamagedArchive:
        return DamagedArchive(f"{self.path} is cut off after {self.position:,} bytes: download it again")


def walk(stream: Stream) -> Iterator[Member]:
    """Every member in the archive's order; `stream.read(member.size)`, before the next, returns its content.

    Supports ustar prefixes, GNU long names and pax paths. Raises DamagedArchive for a truncated or altered
    archive, and, like tarfile's filter="data", for a member that would leave the folder (`..`, absolute).
    """
    long_name: str | None = None
    while True:
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise stream.cut_off()
        if not block.strip(b"\0"):
            second = stream.read(BLOCK)
            if len(second) < BLOCK:
                raise stream.cut_off()
            if second.strip(b"\0"):
                raise DamagedArchive(f"{stream.path} is damaged: data after its end: download it again")
            return drain(stream)
        name, kind, size = parse_header(block, stream)
        content_at, after = stream.position, stream.position + (size + BLOCK - 1) // BLOCK * BLOCK
        if kind in b"Lxg":
            content = whole(stream, size, MOST_HEADER, f"a header at byte {content_at:,}")
            if kind == b"L":
                long_name = content.rstrip(b"\0").decode("utf-8", "replace")
            elif kind == b"x":
                long_name = pax_path(content, stream) or long_name
        else:
            name, long_name = (long_name or name).removeprefix("./"), None
            if name.startswith("/") or ".." in name.split("/"):
                raise DamagedArchive(f"{stream.path}: member {name!r} would leave the folder")
            if "\0" in name:
                raise DamagedArchive(
                    f"{stream.path} is damaged: no file is called {name!r}: download it again"
                )
            folder = kind == b"5" or name.endswith("/")
            yield Member(name, kind in b"0\0" + b"7" and not folder, folder, content_at, size)
        stream.skip_to(after)


def whole(stream: Stream, size: int, most: int, what: str) -> bytes:
    """The next `size` bytes. Raises DamagedArchive if they are missing, or more than `most`."""
    if size > most:
        raise DamagedArchive(
            f"{stream.path} is damaged: {what} claims {size:,} bytes, but at most {most:,} are allowed: "
            "download it again"
        )
    content = stream.read(size)
    if len(content) < size:
        raise stream.cut_off()
    return content


def unpack_tar(archive: Path, target: Path) -> None:
    """Extracts every folder and plain file of a tar below `target`, with new permissions and times.

    Links and devices are left out: nothing is written through them, and the counts show if a dataset needed
    one. Uses our own reader: Python 3.10 and Debian 12's 3.11 lack tarfile.data_filter, without which tarfile
    writes wherever an archive says. Raises DamagedArchive.
    """
    with Stream(archive) as stream:
        for member in walk(stream):
            place = target / member.name
            if member.folder:
                place.mkdir(parents=True, exist_ok=True)
                continue
            if not member.regular:
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            left = member.size
            with place.open("wb") as file:
                while left:
                    content = stream.read(min(CHUNK, left))
                    if not content:
                        raise stream.cut_off()
                    file.write(content)
                    left -= len(content)


def parse_header(block: bytes, stream: Stream) -> tuple[str, bytes, int]:
    """(name, type byte, size) of a 512-byte header. Raises DamagedArchive if its checksum is wrong."""
    try:
        expected = int(block[148:156].rstrip(b" \0") or b"-1", 8)
        size = octal(block[124:136])
    except ValueError:
        expected, size = -1, 0
    # The checksum counts its own field as eight spaces.
    if sum(block) - sum(block[148:156]) + 8 * 32 != expected:
        at = stream.position - BLOCK
        raise DamagedArchive(f"{stream.path} is damaged: no valid header at byte {at:,}: download it again")
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    return name.decode("utf-8", "replace"), block[156:157], size


def octal(field: bytes) -> int:
    """The number in a header field. Raises ValueError for a negative one, which would lead backwards."""
    if field[0] & 0x80:  # GNU's base-256 for sizes of 8 GiB and more
        if field[0] & 0x40:
            raise ValueError(field)
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    if not digits.isdigit():  # Python's int would accept a sign and underscores
        raise ValueError(field)
    return int(digits, 8)


def pax_path(content: bytes, stream: Stream) -> str | None:
    """The `path` record of a pax header, or None; refuses a `size` record, which these never need."""
    path = None
    while content:
        try:
            length = int(content.split(b" ", 1)[0])
            key, equals, value = content[:length].split(b" ", 1)[1].partition(b"=")
            if not 0 < length <= len(content) or not equals or not value.endswith(b"\n"):
                raise ValueError
        except (ValueError, IndexError):
            raise DamagedArchive(
                f"{stream.path} is damaged: no valid pax header before byte {stream.position:,}: "
                "download it again"
            ) from None
        if key == b"path":
            path = value[:-1].decode("utf-8", "replace")
        elif key == b"size":
            raise DamagedArchive(f"{stream.path}: a member of more than 8 GiB; this is not the release")
        content = content[length:]
    return path


def drain(stream: Stream) -> None:
    """Reads to the end, so that a gzip stream's checksum and length are verified."""
    while stream.read(CHUNK):
        pass


def looks_like_html(start: bytes) -> bool:
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<body"))
