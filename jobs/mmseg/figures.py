"""From label maps to figures. Everything is summed as integers, so it does not matter which rank saw which
image, nor in which order: any number of processes gives the same figures to the last digit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int, ignore: int) -> np.ndarray:
    """Pixels (int64, classes × classes) by true class (row) and predicted class (column).

    `truth` and `prediction` are label maps of one shape (integers); pixels with truth `ignore` do not count.
    Raises ValueError for maps of different shapes, or a label that is no class.
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
    """The same by OpenCV, in a third of the time; None where that does not apply or a label is no class."""
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
"""OpenCV's histograms are float32: up to here, every whole number has one."""


PER_CLASS = ("IoU", "Acc", "Dice", "Fscore", "Precision", "Recall")


def figures(matrix: np.ndarray, names: Sequence[str], beta: float = 1.0) -> dict[str, Any]:
    """aAcc, the figures of each class (PER_CLASS) and their means (mIoU, mAcc, …), in percent, of a confusion
    matrix.

    The definitions are those of mmseg's IoUMetric: IoU = TP / (TP + FP + FN), Acc = Recall = TP / (TP + FN),
    Precision = TP / (TP + FP), Dice = 2 TP / (2 TP + FP + FN), Fscore the mean of Precision and Recall that
    `beta` weights, aAcc = TP of all classes / pixels. The means leave out classes of which a figure is not
    defined, such as those that occur neither in truth nor prediction; a figure that is not defined is None.
    """
    right = np.diag(matrix).astype(np.float64)
    truth, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = 100.0 * right / (truth + predicted - np.diag(matrix))
        accuracy = 100.0 * right / truth
        precision = 100.0 * right / predicted
        dice = 200.0 * right / (truth + predicted)
        score = (1 + beta**2) * precision * accuracy / (beta**2 * precision + accuracy)
        overall = 100.0 * right.sum() / matrix.sum()
    columns = dict(zip(PER_CLASS, (iou, accuracy, dice, score, precision, accuracy), strict=True))
    return {
        "aAcc": _number(overall),
        **{f"m{name}": _number(_mean(values)) for name, values in columns.items()},
        "classes": [
            {"name": name, "pixels": int(count)}
            | {key: _number(values[number]) for key, values in columns.items()}
            for number, (name, count) in enumerate(zip(names, truth, strict=True))
        ],
    }


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
