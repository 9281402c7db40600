"""Image headers, and PNGs as used for masks: 8-bit, unfiltered rows."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray

from jobs.run.deflate import InflateError, crc32, deflate, inflate

SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


MOST_PIXELS = 100_000_000
"""The most pixels of a mask that is decoded whole."""


class BadImage(ValueError):
    """Content that is not the image that its name promises; the message says what is wrong."""


def encode_grey(mask: NDArray[np.uint8]) -> bytes:
    """An 8-bit greyscale PNG of `mask` (H×W uint8, any strides)."""
    height, width = mask.shape
    rows = np.zeros((height, width + 1), np.uint8)  # column 0: filter type 0 of each row
    # MATLAB's column-major masks: OpenCV transposes ten times faster than a strided copy.
    rows[:, 1:] = cv2.transpose(mask.T) if mask.T.flags.c_contiguous else mask
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", deflate(rows)) + END


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def decode_fast(content: bytes) -> NDArray[np.uint8] | None:
    """The values, H×W uint8, of an 8-bit palette or greyscale PNG with unfiltered rows, as masks are.

    None for any other file and, since every chunk's checksum is verified, for a damaged one.
    """
    if content[:8] != SIGNATURE:
        return None
    at, packed, header = 8, [], b""
    while True:
        if at + 12 > len(content):
            return None
        (length,) = struct.unpack_from(">I", content, at)
        kind, end = content[at + 4 : at + 8], at + 8 + length
        if end + 4 > len(content) or crc32(content[at + 4 : end]) != int.from_bytes(
            content[end : end + 4], "big"
        ):
            return None
        if kind == b"IHDR":
            header = content[at + 8 : end]
        elif kind == b"IDAT":
            packed.append(content[at + 8 : end])
        elif kind == b"IEND":
            break
        at = end + 4
    if len(header) != 13 or header[8:] not in (b"\x08\x03\0\0\0", b"\x08\0\0\0\0"):
        return None
    width, height = struct.unpack_from(">II", header)
    if width * height > MOST_PIXELS:
        return None
    try:
        inflated = np.frombuffer(inflate(b"".join(packed)), np.uint8)
    except InflateError:
        return None
    if inflated.size != height * (width + 1) or not inflated.size:
        return None
    rows = inflated.reshape(height, width + 1)
    return None if rows[:, 0].any() else rows[:, 1:]


def png_size(content: bytes) -> tuple[int, int]:
    """(width, height) from a PNG's header. Raises BadImage if there is none."""
    if content[:8] != SIGNATURE or content[12:16] != b"IHDR" or len(content) < 24:
        raise BadImage("is not a PNG file")
    width, height = struct.unpack_from(">II", content, 16)
    return width, height


def jpeg_size(content: bytes) -> tuple[int, int]:
    """(width, height) from a JPEG's frame header. Raises BadImage without one, or if the end is missing."""
    if content[:2] != b"\xff\xd8":
        raise BadImage("is empty" if not content else "is not a JPEG file")
    if b"\xff\xd9" not in content[-64:]:
        raise BadImage("is a JPEG file that is cut off")
    at = 2
    while at + 9 <= len(content):
        if content[at] != 0xFF:
            break
        marker = content[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, at + 5)
            return width, height
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    raise BadImage("is a JPEG file without a frame header")
