"""An evaluation's counts per image: they yield intervals and differences (bootstrap) in seconds, without the
model (jobs/run/counts.py), and the worst images."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.mmseg import figures
from jobs.run import counts as counted
from jobs.run import files
from jobs.run.directory import write_atomically

KINDS = (*counted.KINDS, *(f"boundary_{kind}" for kind in counted.KINDS))
"""Counts per class; the last three only for pixels near boundaries (figures.near_boundaries)."""


class PerImage:
    """The counts of one process's images."""

    def __init__(self) -> None:
        self.rows: dict[int, np.ndarray] = {}

    def add(self, number: int, matrix: np.ndarray, boundary: np.ndarray) -> np.ndarray:
        """`number`: the image's in the dataset; `matrix`: figures.confusion of it; `boundary`: of its pixels
        near boundaries. Returns the image's row (KINDS × classes, uint32)."""
        row = np.stack([one for part in (matrix, boundary) for one in _sums(part)]).astype(np.uint32)
        self.rows[number] = row
        return row

    def tobytes(self) -> bytes:
        """The counts by image number, compressed (most are 0), to be sent to other processes."""
        return zlib.compress(b"".join(row.tobytes() for _, row in sorted(self.rows.items())), 1)


def _sums(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return matrix.diagonal(), matrix.sum(1), matrix.sum(0)


def joined(parts: Sequence[bytes], images: int, classes: int) -> np.ndarray:
    """All counts (images × KINDS × classes, uint32), from those of n processes; r has images r, r + n, …"""
    found = np.empty((images, len(KINDS), classes), np.uint32)
    for rank, part in enumerate(parts):
        found[rank :: len(parts)] = np.frombuffer(zlib.decompress(part), np.uint32).reshape(
            -1, len(KINDS), classes
        )
    return found


def score(row: np.ndarray) -> tuple[float, float]:
    """(mIoU, aAcc) of an image in percent, over the classes in its truth or prediction; infinite if all its
    pixels are ignored. `row`: as from `PerImage.add`."""
    three = row[: len(counted.KINDS)].astype(np.int64)
    if not three[1].any():
        return math.inf, math.inf
    return float(counted.mean(counted.rates(*three)["IoU"])), float(counted.overall(*three)["aAcc"])


def worst_first(counts: np.ndarray) -> tuple[list[int], list[tuple[float, float]]]:
    """The images' numbers, lowest mIoU first; and each image's score."""
    scores = [score(row) for row in counts]
    return sorted(range(len(scores)), key=lambda index: (scores[index][0], index)), scores


def completed(found: dict[str, Any], counts: np.ndarray, beta: float) -> dict[str, Any]:
    """figures.figures with `intervals`: [low, high] in percent for each figure, and in `classes` for each
    class's. Independent of the number of processes: the draws are seeded, and the counts in order."""
    random = np.random.default_rng(0)
    sums = counted.resampled([counts[:, number] for number in range(len(KINDS))], random)
    hits, truth, predicted, near_hits, near_truth, near_predicted = sums
    columns = counted.rates(hits, truth, predicted, beta)
    columns["BoundaryIoU"] = counted.rates(near_hits, near_truth, near_predicted)["IoU"]
    drawn = counted.overall(hits, truth, predicted)
    drawn |= {f"m{name}": counted.mean(values) for name, values in columns.items()}
    intervals = {name: _ends(*counted.interval(values)) for name, values in drawn.items()}
    of_classes = {name: counted.interval(values) for name, values in columns.items()}
    classes = [
        one | {"intervals": {name: _ends(low[n], high[n]) for name, (low, high) in of_classes.items()}}
        for n, one in enumerate(found["classes"])
    ]
    settings = {"level": counted.LEVEL, "draws": counted.RESAMPLES}
    return found | {"intervals": intervals, "bootstrap": settings, "classes": classes}


def _ends(low: Any, high: Any) -> list[float] | None:
    ends = [figures.number(low), figures.number(high)]
    return None if None in ends else [float(end) for end in ends if end is not None]


def write(where: Path, names: Sequence[str], counts: np.ndarray) -> None:
    """Writes per_image.npz: `names` (N), and each of KINDS (N × classes, uint32)."""
    buffer = io.BytesIO()
    columns: dict[str, Any] = {kind: counts[:, number] for number, kind in enumerate(KINDS)}
    np.savez_compressed(buffer, names=np.array(names, dtype=np.str_), **columns)
    where.mkdir(parents=True, exist_ok=True)
    write_atomically(where / files.EVAL_IMAGES, buffer.getvalue())
