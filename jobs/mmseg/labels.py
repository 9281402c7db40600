"""From a model's scores to class labels, as in mmseg, but without torch's slow argmax on the CPU.

`argmax` over the first axis strides through memory for each pixel; with a small model on the CPU, that takes
a fifth of the whole evaluation. Comparing whole planes yields the same labels much faster.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.models.utils import resize


def use_fast_labels(model: Any) -> bool:
    """Makes `model.predict` use `best_class` for its labels; its results then lack the scores.

    Returns False, without doing anything, for a model with its own postprocessing.
    """
    if getattr(type(model), "postprocess_result", None) is not BaseSegmentor.postprocess_result:
        return False
    model.postprocess_result = types.MethodType(_postprocess, model)
    return True


@contextlib.contextmanager
def scores_alone(model: Any) -> Iterator[None]:
    """Makes `model.predict` return its scores (`seg_logits`) in the images' sizes without labels, which are
    not needed if scores are summed; a model with its own postprocessing keeps that."""
    before = vars(model).pop("postprocess_result", None)
    if getattr(type(model), "postprocess_result", None) is BaseSegmentor.postprocess_result:
        model.postprocess_result = types.MethodType(_scores, model)
    try:
        yield
    finally:
        vars(model).pop("postprocess_result", None)
        if before is not None:
            model.postprocess_result = before


def _scores(model: Any, scores: torch.Tensor, samples: Any = None) -> Any:
    if not _known(samples):
        return BaseSegmentor.postprocess_result(model, scores, samples)
    for one, sample in zip(_without_padding(scores, samples), samples, strict=True):
        size = tuple(sample.metainfo["ori_shape"])
        if tuple(one.shape[2:]) != size:
            one = resize(one, size, mode="bilinear", align_corners=model.align_corners, warning=False)
        found = one[0].sigmoid() if one.shape[1] == 1 else one[0]
        sample.set_data({"seg_logits": PixelData(data=found)})
    return samples


def _known(samples: Any) -> bool:
    return samples is not None and not any(sample.metainfo.get("flip") for sample in samples)


def _without_padding(scores: torch.Tensor, samples: Any) -> Iterator[torch.Tensor]:
    height, width = scores.shape[2:]
    for number, sample in enumerate(samples):
        meta = sample.metainfo
        padding = meta.get("img_padding_size", meta.get("padding_size", (0, 0, 0, 0)))
        left, right, top, bottom = padding
        yield scores[number : number + 1, :, top : height - bottom, left : width - right]


def _postprocess(model: Any, scores: torch.Tensor, samples: Any = None) -> Any:
    """BaseSegmentor.postprocess_result: `scores` (N × classes × H × W) to results of the images' sizes."""
    if not _known(samples) or scores.shape[1] == 1 or scores.device.type != "cpu":
        return BaseSegmentor.postprocess_result(model, scores, samples)
    for one, sample in zip(_without_padding(scores, samples), samples, strict=True):
        labels = enlarged(one, sample.metainfo["ori_shape"], model.align_corners)
        sample.set_data({"pred_sem_seg": PixelData(data=labels[None])})
    return samples


MOST_SCORES = 1 << 26
"""The most scores (of 4 bytes) that are resized at once; for a larger image, class by class."""


def enlarged(scores: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """The labels (int64, H × W in `size`) of scores (1 × classes × h × w) after resizing these.

    A 25-megapixel image has 2 GB of scores for VOC's classes, which are never all in memory.
    """
    options = {"size": size, "mode": "bilinear", "align_corners": align_corners, "warning": False}
    if scores.shape[1] * size[0] * size[1] <= MOST_SCORES:
        return best_class(resize(scores, **options)[0])
    best = resize(scores[:, :1], **options)[0, 0]
    labels = torch.zeros(best.shape, dtype=torch.uint8 if scores.shape[1] <= 256 else torch.int16)
    for number in range(1, scores.shape[1]):
        plane = resize(scores[:, number : number + 1], **options)[0, 0]
        # NaN counts as the highest, as for argmax.
        higher = (plane > best) | (plane.isnan() & ~best.isnan())
        labels[higher] = number
        best = torch.where(higher, plane, best)
    return labels.long()


def best_class(scores: torch.Tensor) -> torch.Tensor:
    """`scores.argmax(0)` of classes × H × W floats: the first class with the highest (int64, H × W)."""
    if len(scores) > 256:
        return scores.argmax(0)
    best = scores[0].clone()
    labels = torch.zeros(best.shape, dtype=torch.uint8)
    higher = torch.empty(best.shape, dtype=torch.bool)
    for number in range(1, len(scores)):
        torch.gt(scores[number], best, out=higher)
        torch.maximum(best, scores[number], out=best)
        # Class numbers increase, so the maximum is the last class that was higher.
        torch.maximum(labels, higher.view(torch.uint8).mul_(number), out=labels)
    if best.isnan().any():
        # Comparisons with NaN are False, but argmax treats it as the highest.
        return scores.argmax(0)
    return labels.long()
