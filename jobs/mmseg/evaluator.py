"""The metric for validations during a training: mmseg's IoUMetric, counted as in figures.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS

from jobs.mmseg import data
from jobs.mmseg.figures import histogram


@METRICS.register_module()
class FastIoUMetric(IoUMetric):
    """mmseg's IoUMetric, but counts in a tenth of the time, and sums exactly.

    IoUMetric sums in float32, which is inexact beyond 16 million pixels of a class (some 90 images); this
    sums in float64, which is exact up to 9e15.
    """

    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:
        """As mmseg's. Raises DataError, naming the image, if prediction and annotation differ in size."""
        for sample in data_samples:
            if "gt_sem_seg" in sample:
                truth, prediction = (sample[key]["data"].shape[-2:] for key in ("gt_sem_seg", "pred_sem_seg"))
                if truth != prediction:
                    raise data.DataError(data.unequal(sample, prediction, truth))
        super().process(data_batch, data_samples)

    @staticmethod
    def intersect_and_union(
        pred_label: torch.Tensor, label: torch.Tensor, num_classes: int, ignore_index: int
    ) -> tuple[torch.Tensor, ...]:
        """Pixels by class (float64, classes) of one image: intersection, union, prediction, truth."""
        truth, prediction = label.cpu().numpy(), pred_label.cpu().numpy()
        matrix = histogram(truth, prediction, num_classes, ignore_index)
        if matrix is None:
            # For example labels that are not classes: mmseg has its own rules for them.
            areas = IoUMetric.intersect_and_union(pred_label, label, num_classes, ignore_index)
            return tuple(area.double() for area in areas)
        counts = torch.from_numpy(matrix).double()
        right, predicted, there = counts.diagonal(), counts.sum(0), counts.sum(1)
        return right.clone(), predicted + there - right, predicted, there


def use_fast_metric(evaluator: Any) -> int:
    """Replaces IoUMetric by FastIoUMetric in a config's evaluator (one or a list), in place.

    Returns how many were replaced; the user's own classes stay.
    """
    if isinstance(evaluator, (list, tuple)):
        return sum(map(use_fast_metric, evaluator))
    if not isinstance(evaluator, dict):
        return 0
    kind = evaluator.get("type")
    if isinstance(kind, str) and kind.rpartition(".")[2] == "IoUMetric":
        kind = METRICS.get(kind)
    if kind is not IoUMetric:
        return 0
    evaluator["type"] = "FastIoUMetric"
    return 1
