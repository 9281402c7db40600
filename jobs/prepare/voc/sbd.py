"""Reads the mask from one of SBD's GTcls .mat files, without building the sparse matrices beside it.

The fast path walks the MATLAB 5 elements to the one array needed. Any file that is not exactly like the
release's is read with scipy instead, and the result checked as strictly.
"""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys

import numpy as np
from numpy.typing import NDArray

from jobs.run.deflate import InflateError, inflate

Mask = NDArray[np.uint8]

CLASSES = 20
"""Labels 1 to 20; 0 is background. SBD has no 255."""

# MATLAB 5 element types and array classes.
INT8, UINT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 2, 5, 6, 14, 15
STRUCT_CLASS, UINT8_CLASS = 2, 9


class BadMask(ValueError):
    """A mask that training must not see; the message says what is wrong with it."""


def mask_of(mat: bytes) -> Mask:
    """The class mask of a GTcls file, H×W uint8 with labels 0 to 20 (a view, column-major in memory).

    Raises BadMask if the file is unreadable or its mask is not a 2-D uint8 array of those labels.
    """
    mask = fast(mat)
    if mask is None:
        mask = by_scipy(mat)
    if mask.size == 0:
        raise BadMask("has an empty mask")
    highest = int(mask.max())
    if highest > CLASSES:
        raise BadMask(f"has label {highest}; labels go up to {CLASSES}")
    return mask


class Unlike(Exception):
    """The file is not laid out as SBD's; it may still be valid."""


def fast(mat: bytes) -> Mask | None:
    """The mask of a file with exactly SBD's layout; None if anything is different."""
    if mat[124:128] != b"\x00\x01IM" or len(mat) < 136:
        return None
    kind, length = struct.unpack_from("<II", mat, 128)
    if 136 + length != len(mat):
        return None
    try:
        raw = inflate(memoryview(mat)[136:]) if kind == COMPRESSED else mat[128:]
        return segmentation(raw)
    except (Unlike, struct.error, InflateError):
        return None


def segmentation(raw: bytes) -> Mask:
    """`GTcls.Segmentation` in an inflated struct element. Raises Unlike, or struct.error past the end."""
    class_, dims, name, at, end = matrix_header(raw, 0)
    if class_ != STRUCT_CLASS or dims != (1, 1) or name != b"GTcls" or end != len(raw):
        raise Unlike
    kind, size, data, at = element(raw, at)
    if kind != INT32 or size != 4:
        raise Unlike
    (field_length,) = struct.unpack_from("<i", raw, data)
    kind, size, data, at = element(raw, at)
    if kind != INT8 or field_length < 1 or size % field_length:
        raise Unlike
    names = [raw[i : i + field_length].rstrip(b"\0") for i in range(data, data + size, field_length)]
    if names.count(b"Segmentation") != 1:
        raise Unlike
    for field in names:
        kind, size, data, after = element(raw, at)
        if kind != MATRIX or after > end:
            raise Unlike
        if field == b"Segmentation":
            break
        at = after
    class_, dims, _, inner, end = matrix_header(raw, at)
    kind, size, data, after = element(raw, inner)
    if class_ != UINT8_CLASS or kind != UINT8 or len(dims) != 2 or after != end:
        raise Unlike
    height, width = dims
    if height < 1 or width < 1 or size != height * width:
        raise Unlike
    return np.frombuffer(raw, np.uint8, size, data).reshape(width, height).T


def matrix_header(raw: bytes, at: int) -> tuple[int, tuple[int, ...], bytes, int, int]:
    """(class, dims, name, where its content begins, where it ends) of the matrix element at `at`."""
    kind, _, at, end = element(raw, at)
    if kind != MATRIX or end > len(raw):
        raise Unlike
    kind, size, data, at = element(raw, at)
    if kind != UINT32 or size != 8:
        raise Unlike
    (flags,) = struct.unpack_from("<I", raw, data)
    if flags & 0x800:  # complex
        raise Unlike
    kind, size, data, at = element(raw, at)
    if kind != INT32 or size % 4:
        raise Unlike
    dims = struct.unpack_from(f"<{size // 4}i", raw, data)
    kind, size, data, at = element(raw, at)
    if kind != INT8:
        raise Unlike
    return flags & 0xFF, dims, raw[data : data + size], at, end


def element(raw: bytes, at: int) -> tuple[int, int, int, int]:
    """(type, bytes of data, where they begin, where the next element begins) of the element at `at`."""
    (kind,) = struct.unpack_from("<I", raw, at)
    if kind >> 16:  # small element: length in the upper half, data in the second word
        return kind & 0xFFFF, kind >> 16, at + 4, at + 8
    (size,) = struct.unpack_from("<I", raw, at + 4)
    return kind, size, at + 8, at + 8 + (size + 7 & ~7)


READER = """
import io, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
import numpy as np
from scipy.io import loadmat
mask = np.asarray(loadmat(io.BytesIO(sys.stdin.buffer.read()))["GTcls"][0]["Segmentation"][0])
if mask.dtype.kind not in "biufc":
    raise TypeError(f"a mask of type {mask.dtype}")
content = io.BytesIO()
np.save(content, mask, allow_pickle=False)
sys.stdout.buffer.write(content.getvalue())
"""


def by_scipy(mat: bytes) -> Mask:
    """The mask as read by scipy, if it converts without loss. Raises BadMask."""
    # In a separate process: a damaged file can crash scipy's reader, or make it allocate all memory.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    try:
        command = [sys.executable, "-I", "-c", READER]
        done = subprocess.run(
            command, input=mat, env=environment, capture_output=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        raise BadMask("is not a readable GTcls file (reading it does not end)") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["its reader crashes"]
        raise BadMask(f"is not a readable GTcls file ({' '.join(said[-1].split())})")
    mask = np.load(io.BytesIO(done.stdout), allow_pickle=False)
    if mask.ndim != 2:
        raise BadMask(f"has a mask of shape {mask.shape}, not height × width")
    if mask.dtype != np.uint8:
        # Other types are accepted only if every value is a valid label: 271 must not become 15.
        if mask.dtype.kind not in "iuf" or not np.isin(mask, np.arange(CLASSES + 1)).all():
            raise BadMask(f"has a mask of type {mask.dtype} with values that are not labels")
        mask = mask.astype(np.uint8)
    return mask
