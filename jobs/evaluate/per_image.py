"""What an evaluation counted on each image: from that, intervals and differences are drawn (bootstrap) in
seconds, without the model (launch/observe/report/groups.py)."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.run import files
from jobs.run.directory import write_atomically

KINDS = ("hits", "truth", "predicted")
"""Pixels of a class that are right; that the truth has; that the prediction has (where the truth counts)."""


class PerImage:
    """The counts of one process's images, in the order in which they came."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []

    def add(self, matrix: np.ndarray) -> None:
        """`matrix`: figures.confusion of an image."""
        self.rows.append(np.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)]).astype(np.uint32))

    def tobytes(self) -> bytes:
        """Compressed, for the other processes: of most classes an image has no pixel."""
        return zlib.compress(b"".join(row.tobytes() for row in self.rows), 1)


def joined(parts: Sequence[bytes], images: int, classes: int) -> np.ndarray:
    """All counts (images × 3 × classes, uint32), from each process's; process r has images r, r + n, …"""
    found = np.empty((images, len(KINDS), classes), np.uint32)
    for rank, part in enumerate(parts):
        found[rank :: len(parts)] = np.frombuffer(zlib.decompress(part), np.uint32).reshape(
            -1, len(KINDS), classes
        )
    return found


def write(where: Path, names: Sequence[str], counts: np.ndarray) -> None:
    """Writes per_image.npz: `names` (N), and `hits`, `truth`, `predicted` (N × classes, uint32)."""
    buffer = io.BytesIO()
    columns: dict[str, Any] = {kind: counts[:, number] for number, kind in enumerate(KINDS)}
    np.savez_compressed(buffer, names=np.array(names, dtype=np.str_), **columns)
    where.mkdir(parents=True, exist_ok=True)
    write_atomically(where / files.EVAL_IMAGES, buffer.getvalue())
