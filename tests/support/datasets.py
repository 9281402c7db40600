"""What a prepared dataset holds, whatever its compression made of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2

from jobs.catalog.manifest import FILES, MANIFEST
from jobs.prepare import verify


def contents(root: Path) -> dict[str, str]:
    """For each file below `root` a digest: of a PNG's shape and pixels, of any other file's bytes.

    Two preparations must agree in these. They need not in how a PNG is packed: once, on one machine, a mask
    had 355 bytes where the other 39 like it had 356; why was not found.
    """
    assert verify.deep(root, processes=1) == []
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_dir() or path.name in (FILES, MANIFEST):
            continue
        content = path.read_bytes()
        if path.suffix == ".png":
            pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert pixels is not None, path
            content = repr(pixels.shape).encode() + pixels.tobytes()
        found[str(path.relative_to(root))] = hashlib.sha256(content).hexdigest()
    return found
