"""Metrics from pixel counts, and their confidence intervals: images drawn with replacement (bootstrap).

The counts per class (hits, truth, predicted) suffice for every metric, so an evaluation's intervals and the
difference between two evaluations take seconds and need no model (Efron and Tibshirani, An Introduction to
the Bootstrap, 1993, ch. 13). NumPy is imported late, because most commands do not need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

KINDS = ("hits", "truth", "predicted")
"""Pixels of a class: predicted correctly; in the truth; in the prediction (unless the truth is ignored)."""
RESAMPLES = 2000
LEVEL = 0.95
_AT_ONCE = 1 << 22
"""Numbers (of 8 bytes) held at a time while drawing."""


def rates(
    hits: np.ndarray, truth: np.ndarray, predicted: np.ndarray, beta: float = 1.0
) -> dict[str, np.ndarray]:
    """Each metric of each class in percent, in the arrays' shape (… × classes); NaN where it is undefined.

    The definitions are those of mmseg's IoUMetric: IoU = TP / (TP + FP + FN), Acc = Recall = TP / (TP + FN),
    Precision = TP / (TP + FP), Dice = 2 TP / (2 TP + FP + FN), Fscore = F_beta of Precision and Recall.
    """
    import numpy as np

    hits, truth, predicted = (np.asarray(one, np.float64) for one in (hits, truth, predicted))
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy, precision = 100.0 * hits / truth, 100.0 * hits / predicted
        return {
            "IoU": 100.0 * hits / (truth + predicted - hits),
            "Acc": accuracy,
            "Dice": 200.0 * hits / (truth + predicted),
            "Fscore": (1 + beta**2) * precision * accuracy / (beta**2 * precision + accuracy),
            "Precision": precision,
            "Recall": accuracy,
        }


def overall(hits: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of all classes together, in percent, in the arrays' shape without its last axis: aAcc = TP of
    all classes / pixels; fwIoU, the classes' IoU weighted by their share of the truth's pixels (Long,
    Shelhamer and Darrell, Fully Convolutional Networks for Semantic Segmentation, CVPR 2015)."""
    import numpy as np

    iou = np.nan_to_num(rates(hits, truth, predicted)["IoU"])
    pixels = np.asarray(truth, np.float64).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "aAcc": 100.0 * np.asarray(hits, np.float64).sum(-1) / pixels,
            "fwIoU": (iou * truth).sum(-1) / pixels,
        }


def mean(values: np.ndarray) -> np.ndarray:
    """The mean over the classes (last axis) where the metric is defined; NaN if it is for none."""
    import numpy as np

    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(defined, values, 0.0).sum(-1) / defined.sum(-1))


def read(path: Path) -> dict[str, np.ndarray] | None:
    """`names` of images, and each of KINDS as images × classes; None if the file is missing or damaged."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in ("names", *KINDS)}
    except Exception:  # zipfile, zlib and numpy raise anything for a damaged file
        return None
    names, *each = found.values()
    shape = each[0].shape
    sound = len(shape) == 2 and all(one.shape == shape and one.dtype.kind in "ui" for one in each)
    return found if sound and names.shape == shape[:1] else None


def resampled(counts: Sequence[np.ndarray], random: np.random.Generator) -> list[np.ndarray]:
    """Each of `counts` (images × …) summed over the drawn images, (RESAMPLES + 1) × …, with the same draws
    for all; row 0 has each image once, which is the measurement itself."""
    import numpy as np

    images = len(counts[0])
    flat = [one.reshape(images, -1).astype(np.float64) for one in counts]
    rows = [[one.sum(0, keepdims=True)] for one in flat]
    at_once = max(1, _AT_ONCE // max(1, images))
    for begin in range(0, RESAMPLES, at_once):
        share = np.full(images, 1 / images)
        draws = random.multinomial(images, share, min(at_once, RESAMPLES - begin)).astype(np.float64)
        for found, one in zip(rows, flat, strict=True):
            found.append(draws @ one)
    return [np.vstack(found).reshape(-1, *one.shape[1:]) for found, one in zip(rows, counts, strict=True)]


def interval(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the percentile interval that holds LEVEL of the drawn values, along the first axis; NaN
    where a value is never defined. Row 0, the measurement, is left out."""
    import warnings

    import numpy as np

    tail = (1 - LEVEL) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # for values that are never defined
        low, high = np.nanquantile(drawn[1:], [tail, 1 - tail], axis=0)
    return low, high
