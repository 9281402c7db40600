"""Inflate and deflate with the fastest library installed, else with the standard library's.

Inflating an SBD mask takes zlib-ng a quarter of zlib's time; packing a PNG's rows takes isal a twelfth of
PIL's. All of them check the stream's checksum.
"""

from __future__ import annotations

import gzip
import io
import zlib
from typing import IO, Any, cast

GUNZIP_ERRORS: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, zlib.error)

inflater: Any
packer: Any
gunzipper: Any
try:
    from zlib_ng import zlib_ng as inflater
except ImportError:
    inflater = zlib
try:
    from isal import igzip_threaded as gunzipper
    from isal import isal_zlib as packer
    from isal.igzip_lib import IsalError

    GUNZIP_ERRORS += (cast(type[Exception], IsalError),)
except ImportError:
    gunzipper, packer = None, zlib

InflateError: type[Exception] = inflater.error


MOST_INFLATED = 256 << 20
"""The most bytes that a zlib stream may expand to: far more than any mask's."""

MOST_RATIO = 1032
"""The highest expansion that deflate can have (https://zlib.net/zlib_tech.html)."""


def inflate(packed: bytes | memoryview) -> bytes:
    """A zlib stream's content. Raises InflateError if it is damaged, incomplete or over MOST_INFLATED."""
    if len(packed) * MOST_RATIO <= MOST_INFLATED:
        return cast(bytes, inflater.decompress(packed, bufsize=1 << 18))
    stream = inflater.decompressobj()
    content = stream.decompress(packed, MOST_INFLATED)
    if not stream.eof:
        raise InflateError(f"it ends too early, or would expand to more than {MOST_INFLATED:,} bytes")
    return cast(bytes, content)


def deflate(content: Any) -> bytes:
    """A level-1 zlib stream of any contiguous buffer."""
    return cast(bytes, packer.compress(content, 1))


def crc32(content: bytes | memoryview) -> int:
    return cast(int, packer.crc32(content))


def open_gzip(file: IO[bytes]) -> IO[bytes]:
    """The inflated content of an open gzip file, which stays open.

    Reading raises one of GUNZIP_ERRORS if the file is truncated or altered.
    """
    if gunzipper is None:
        return cast(IO[bytes], io.BufferedReader(gzip.GzipFile(fileobj=file), 1 << 20))
    # Inflates in a second thread.
    return cast(IO[bytes], gunzipper.open(file, "rb"))


def content_digest(content: bytes) -> str:
    """The CRC-32 of a dataset's file, in hex: it detects damage, at no cost compared to reading the file."""
    return f"{crc32(content):08x}"
