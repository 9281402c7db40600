"""Inflate and deflate by the fastest library at hand; the standard library's where none is installed.

Per SBD mask, inflating takes zlib-ng a quarter of zlib's time, and packing a PNG's rows takes isal a twelfth
of PIL's. All of them check the stream's checksum.
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
"""Bytes that one zlib stream may become: far more than any mask's."""

MOST_RATIO = 1032
"""Deflate makes no more of a byte (https://zlib.net/zlib_tech.html)."""


def inflate(packed: bytes | memoryview) -> bytes:
    """Raises InflateError for a damaged or incomplete zlib stream, and for one of more than MOST_INFLATED."""
    if len(packed) * MOST_RATIO <= MOST_INFLATED:
        return cast(bytes, inflater.decompress(packed, bufsize=1 << 18))
    stream = inflater.decompressobj()
    content = stream.decompress(packed, MOST_INFLATED)
    if not stream.eof:
        raise InflateError(f"it ends too early, or would expand to more than {MOST_INFLATED:,} bytes")
    return cast(bytes, content)


def deflate(content: Any) -> bytes:
    """A zlib stream, level 1, of any contiguous buffer."""
    return cast(bytes, packer.compress(content, 1))


def crc32(content: bytes | memoryview) -> int:
    return cast(int, packer.crc32(content))


def open_gzip(file: IO[bytes]) -> IO[bytes]:
    """The inflated content of an open file, which stays open.

    Reading raises one of GUNZIP_ERRORS where it is cut off or altered.
    """
    if gunzipper is None:
        return cast(IO[bytes], io.BufferedReader(gzip.GzipFile(fileobj=file), 1 << 20))
    # Inflates in a second thread.
    return cast(IO[bytes], gunzipper.open(file, "rb"))


def content_digest(content: bytes) -> str:
    """crc32 of a dataset's file: it finds damage, and costs nothing beside reading the file."""
    return f"{crc32(content):08x}"
