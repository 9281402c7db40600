"""From label maps to metrics. Everything is summed as integers, so it does not matter which rank saw which
image, or in which order: any number of processes yields the same figures to the last digit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from jobs.run import counts as counted


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int, ignore: int) -> np.ndarray:
    """Pixels (int64, classes × classes) by true class (row) and predicted class (column).

    `truth` and `prediction` are label maps of one shape (integers); pixels with truth `ignore` do not count.
    Raises ValueError for maps of different shapes, or a label that is not a class.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"the truth has shape {truth.shape}, the prediction {prediction.shape}")
    if (counts := histogram(truth, prediction, classes, ignore)) is not None:
        return counts
    kept = truth != ignore
    rows, columns = truth[kept].astype(np.int64), prediction[kept].astype(np.int64)
    for name, labels in (("truth", rows), ("prediction", columns)):
        if labels.size and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"the {name} has labels up to {labels.max()}, but there are {classes} classes")
    counts = np.bincount(rows * classes + columns, minlength=classes * classes)
    return counts.reshape(classes, classes)


def histogram(truth: np.ndarray, prediction: np.ndarray, classes: int, ignore: int) -> np.ndarray | None:
    """The same with OpenCV, in a third of the time; None if not applicable or a label is not a class."""
    if (
        truth.ndim != 2
        or not 0 < truth.size <= EXACT_IN_FLOAT32
        or classes > 255
        or not classes <= ignore < 256
    ):
        return None
    maps = []
    for labels in (truth, prediction):
        if labels.dtype != np.uint8:
            if not 0 <= labels.min() <= labels.max() < 256:
                return None
            labels = labels.astype(np.uint8)
        maps.append(labels)
    counts = cv2.calcHist(maps, [0, 1], None, [classes, classes], [0, classes, 0, classes]).astype(np.int64)
    complete = counts.sum() + np.count_nonzero(maps[0] == ignore) == truth.size
    return counts if complete else None


EXACT_IN_FLOAT32 = 1 << 24
"""OpenCV's histograms are float32, which represents every integer up to here exactly."""


PER_CLASS = ("IoU", "Acc", "Dice", "Fscore", "Precision", "Recall")

BOUNDARY_WIDTH = 0.02
"""How far from a boundary a pixel counts as near it, as a fraction of the image's diagonal."""


def near_boundaries(truth: np.ndarray) -> np.ndarray:
    """Which pixels (bool, H × W) lie near a boundary between two labels of the truth, the ignored one
    included (which datasets such as VOC paint along the boundaries).

    This band, the trimap, is that of Kohli, Ladický and Torr, Robust Higher Order Potentials for Enforcing
    Label Consistency, IJCV 82 (2009); what is counted in it is the Trimap IoU. As wide as for the
    Boundary IoU of Cheng et al. (CVPR 2021): BOUNDARY_WIDTH of the image's diagonal, at least a
    pixel, to each side, measured along rows and columns (a square neighbourhood). The image's edge is no
    boundary.
    """
    width = max(1, round(BOUNDARY_WIDTH * math.hypot(*truth.shape)))
    labels: Any = truth.astype(np.uint8 if truth.max(initial=0) < 256 else np.uint16)
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    return np.asarray(cv2.dilate(labels, window) != cv2.erode(labels, window))


def figures(
    matrix: np.ndarray, names: Sequence[str], beta: float = 1.0, boundary: np.ndarray | None = None
) -> dict[str, Any]:
    """aAcc, fwIoU, the metrics of each class (PER_CLASS) and their means (mIoU, mAcc, …), in percent, from a
    confusion matrix; jobs/run/counts.py defines them. `boundary`: the counts near boundaries (counts.KINDS ×
    classes), for BoundaryIoU.

    The means leave out classes of which a figure is not defined, such as those that occur neither in truth
    nor prediction; a figure that is not defined is None.
    """
    pixels = (np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0))
    columns = counted.rates(*pixels, beta)
    if boundary is not None:
        columns["BoundaryIoU"] = counted.rates(*boundary)["IoU"]
    return {
        **{name: number(value) for name, value in counted.overall(*pixels).items()},
        **{f"m{name}": number(counted.mean(values)) for name, values in columns.items()},
        "classes": [
            {"name": name, "pixels": int(count)}
            | {key: number(values[index]) for key, values in columns.items()}
            for index, (name, count) in enumerate(zip(names, pixels[1], strict=True))
        ],
    }


def number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
