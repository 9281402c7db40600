"""From a model's scores to class numbers, as mmseg does it, but without torch's slow argmax on the CPU.

`argmax` over the first axis walks through memory class by class for each pixel; with a small model on the CPU
that takes a fifth of the whole evaluation. Comparing whole planes gives the same numbers much sooner.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.models.utils import resize


def use_fast_labels(model: Any) -> bool:
    """Makes `model.predict` take its class numbers from `best_class`; its results then lack the scores.

    False, and nothing done, for a model with its own way to results.
    """
    if getattr(type(model), "postprocess_result", None) is not BaseSegmentor.postprocess_result:
        return False
    model.postprocess_result = types.MethodType(_postprocess, model)
    return True


def _postprocess(model: Any, scores: torch.Tensor, samples: Any = None) -> Any:
    """BaseSegmentor.postprocess_result: `scores` (N × classes × H × W) to results of the images' sizes."""
    known = samples is not None and not any(sample.metainfo.get("flip") for sample in samples)
    if not known or scores.shape[1] == 1 or scores.device.type != "cpu":
        return BaseSegmentor.postprocess_result(model, scores, samples)
    height, width = scores.shape[2:]
    for number, sample in enumerate(samples):
        meta = sample.metainfo
        padding = meta.get("img_padding_size", meta.get("padding_size", (0, 0, 0, 0)))
        left, right, top, bottom = padding
        one = scores[number : number + 1, :, top : height - bottom, left : width - right]
        labels = enlarged(one, meta["ori_shape"], model.align_corners)
        sample.set_data({"pred_sem_seg": PixelData(data=labels[None])})
    return samples


MOST_SCORES = 1 << 26
"""Scores (of 4 bytes) that are enlarged at once; of a larger image, one class after the other."""


def enlarged(scores: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """The class numbers (int64, H × W in `size`) of scores (1 × classes × h × w), enlarged first.

    An image of 25 megapixels has 2 GB of scores for VOC's classes: those are never there all together.
    """
    options = {"size": size, "mode": "bilinear", "align_corners": align_corners, "warning": False}
    if scores.shape[1] * size[0] * size[1] <= MOST_SCORES:
        return best_class(resize(scores, **options)[0])
    best = resize(scores[:, :1], **options)[0, 0]
    labels = torch.zeros(best.shape, dtype=torch.uint8 if scores.shape[1] <= 256 else torch.int16)
    for number in range(1, scores.shape[1]):
        plane = resize(scores[:, number : number + 1], **options)[0, 0]
        # NaN is the highest, as for argmax.
        higher = (plane > best) | (plane.isnan() & ~best.isnan())
        labels[higher] = number
        best = torch.where(higher, plane, best)
    return labels.long()


def best_class(scores: torch.Tensor) -> torch.Tensor:
    """`scores.argmax(0)` of classes × H × W floats: the first of the highest (int64, H × W)."""
    if len(scores) > 256:
        return scores.argmax(0)
    best = scores[0].clone()
    labels = torch.zeros(best.shape, dtype=torch.uint8)
    higher = torch.empty(best.shape, dtype=torch.bool)
    for number in range(1, len(scores)):
        torch.gt(scores[number], best, out=higher)
        torch.maximum(best, scores[number], out=best)
        # Numbers grow from class to class, so the last one that was higher is the greatest.
        torch.maximum(labels, higher.view(torch.uint8).mul_(number), out=labels)
    if best.isnan().any():
        # Nothing compares with NaN, but argmax takes it for the highest.
        return scores.argmax(0)
    return labels.long()
