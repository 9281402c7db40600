"""Digests of files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

CHUNK = 1 << 20


def digest(path: Path, algorithm: str, advance: Callable[[int], object] = lambda _: None) -> str:
    """The file's hex digest by hashlib's `algorithm`; `advance` is called with each block's size."""
    state: Any = hashlib.new(algorithm)
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(view[:count])
            advance(count)
    return cast(str, state.hexdigest())
