"""The recipe's training transforms, faster than mmseg's, and equal bit for bit.

Each class here replaces one of mmseg's: same arguments, same results, and the same
draws from numpy's global generator in the same order, so that swapping them changes no sample.
`use_fast_transforms` swaps them in a config; `baton = dict(fast_transforms=False)` there keeps mmseg's own.

Where the time of the stock pipeline goes, and what is done about it:
LoadAnnotations decodes masks by Pillow; those of prepared datasets need no more than inflating;
RandomCrop counts the labels of up to ten crops by sorting them (np.unique), here by comparison;
PhotoMetricDistortion computes in float32, here through tables of 256 entries, several steps folded into one;
PackSegInputs and RandomFlip leave the channel shuffling to strided copies, here OpenCV's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from mmcv.transforms import Pad
from mmcv.transforms.utils import cache_randomness
from mmengine import fileio
from mmseg.datasets.transforms import (
    LoadAnnotations,
    PackSegInputs,
    PhotoMetricDistortion,
    RandomCrop,
    RandomFlip,
)
from mmseg.registry import TRANSFORMS

from jobs.run import png

Image = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]

LEVELS = np.arange(256, dtype=np.uint8)


@TRANSFORMS.register_module()
class LoadAnnotationsFast(LoadAnnotations):
    """mmseg's LoadAnnotations, but a mask that is an 8-bit PNG with unfiltered rows is only inflated.

    The name has to start like that of a loading transform (data.py, model.py).
    """

    reduce_zero_label: bool | None
    inflates = True
    """False once a mask is of another kind: a dataset's masks are alike, and each would be read twice."""

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        if self.inflates and self.as_they_are(results):
            content = fileio.get(results["seg_map_path"], backend_args=self.backend_args)
            mask = png.decode_fast(content)
            if mask is not None:
                self.take(results, mask.copy().squeeze())
                return
            self.inflates = False
        super()._load_seg_map(results)

    def as_they_are(self, results: dict[str, Any]) -> bool:
        """Whether the labels are used as Pillow reads them from the file, with 8 bits."""
        unchanged = not self.reduce_zero_label and results["reduce_zero_label"] is False
        return unchanged and results.get("label_map") is None and self.imdecode_backend == "pillow"

    def take(self, results: dict[str, Any], mask: Image) -> None:
        """Stores such labels (height, width), as mmseg's does."""
        self.reduce_zero_label = False
        results["gt_seg_map"] = mask
        results["seg_fields"].append("gt_seg_map")


@TRANSFORMS.register_module()
class FastRandomCrop(RandomCrop):
    """mmseg's RandomCrop, but crops are tested against `cat_max_ratio` by counting instead of sorting."""

    @cache_randomness
    def crop_bbox(self, results: dict[str, Any]) -> Box:
        """The crop's (top, bottom, left, right) in pixels; bottom and right may lie beyond the image."""
        box = self._draw(results["img"].shape)
        if self.cat_max_ratio >= 1.0:
            return box
        mask = results["gt_seg_map"]
        test = _CropTest(mask, self.ignore_index, self.cat_max_ratio)
        # An image that fits into the crop has only one crop, drawn repeatedly.
        tested: dict[Box, bool] = {}
        for _ in range(10):
            if box not in tested:
                tested[box] = test.is_mixed(self.crop(mask, box))
            if tested[box]:
                break
            box = self._draw(results["img"].shape)
        return box

    def _draw(self, shape: tuple[int, ...]) -> Box:
        height, width = self.crop_size
        top = np.random.randint(0, max(shape[0] - height, 0) + 1)
        left = np.random.randint(0, max(shape[1] - width, 0) + 1)
        return top, top + height, left, left + width


class _CropTest:
    """Tests whether crops of one mask have more than one label, none of which covers too much.

    Comparing a crop with one value takes a fraction of the time of sorting. With 8-bit labels, two or three
    comparisons suffice: with the ignored label, and the most common ones of every eighth pixel, until no
    remaining label could cover too much.
    """

    def __init__(self, mask: npt.NDArray[Any], ignored: int, part: float) -> None:
        self.ignored, self.part = ignored, part
        self.labels: list[int] = []
        if _is_plain(mask) and mask.ndim == 2:
            common = np.bincount(mask[::8, ::8].ravel())
            found = np.argsort(-common).tolist()
            self.labels = [label for label in found if common[label] and label != ignored]

    def is_mixed(self, crop: npt.NDArray[Any]) -> bool:
        counted = left = crop.size - int(np.count_nonzero(crop == self.ignored))
        most = labels = 0
        for label in self.labels:
            count = int(np.count_nonzero(crop == label))
            left -= count
            most = max(most, count)
            labels += count > 0
            if most and most / counted >= self.part:
                return False
            if not left:
                return labels > 1
            if labels and left / counted < self.part:
                return True
        # Undecided by the comparisons above.
        found, counts = np.unique(crop, return_counts=True)
        counts = counts[found != self.ignored]
        return len(counts) > 1 and bool(counts.max() / counts.sum() < self.part)


@TRANSFORMS.register_module()
class FastPhotoMetricDistortion(PhotoMetricDistortion):
    """mmseg's PhotoMetricDistortion, but each step on 8-bit images is a table made by mmseg's arithmetic."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        image = results["img"]
        if not _is_plain(image) or image.ndim != 3:
            return super().transform(results)
        # The draws, in mmseg's order.
        table = self._brightness()
        contrast_first = np.random.randint(2) == 1
        if contrast_first:
            table = _then(table, self._contrast())
        saturation = self._saturation()
        hue = self._hue()
        last = None if contrast_first else self._contrast()

        image = _through(image, table)
        # Two conversions there and back, as in mmseg: each rounds.
        image = _through_hsv(image, 1, saturation)
        image = _through_hsv(image, 0, hue)
        results["img"] = _through(image, last)
        return results

    def _brightness(self) -> Image | None:
        if not np.random.randint(2):
            return None
        return self.convert(LEVELS, beta=np.random.uniform(-self.brightness_delta, self.brightness_delta))

    def _contrast(self) -> Image | None:
        if not np.random.randint(2):
            return None
        return self.convert(LEVELS, alpha=np.random.uniform(self.contrast_lower, self.contrast_upper))

    def _saturation(self) -> Image | None:
        if not np.random.randint(2):
            return None
        return self.convert(LEVELS, alpha=np.random.uniform(self.saturation_lower, self.saturation_upper))

    def _hue(self) -> Image | None:
        if not np.random.randint(2):
            return None
        shift = np.random.randint(-self.hue_delta, self.hue_delta)
        return ((LEVELS.astype(int) + shift) % 180).astype(np.uint8)


def _then(first: Image | None, second: Image | None) -> Image | None:
    """The table equivalent to `first` followed by `second`; None is the identity."""
    if first is None or second is None:
        return second if first is None else first
    return second[first]


def _through(image: Image, table: Image | None) -> Image:
    return image if table is None else np.asarray(cv2.LUT(image, table), np.uint8)


def _through_hsv(image: Image, channel: int, table: Image | None) -> Image:
    if table is None:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), np.uint8)


@TRANSFORMS.register_module()
class FastRandomFlip(RandomFlip):
    """mmseg's RandomFlip, but flips 8-bit arrays into new ones, not into views that later steps copy."""

    AXES = {"horizontal": 1, "vertical": 0, "diagonal": -1}  # noqa: RUF012

    def _flip(self, results: dict[str, Any]) -> None:
        axis = self.AXES[results["flip_direction"]]
        keys = ["img", *(key for key in results.get("seg_fields", []) if results.get(key) is not None)]
        plain = all(_is_plain(results[key]) for key in keys)
        if not plain or self.swap_seg_labels is not None or results.get("gt_bboxes") is not None:
            super()._flip(results)
            return
        for key in keys:
            results[key] = cv2.flip(results[key], axis)
            if key != "img":
                results["swap_seg_labels"] = None


@TRANSFORMS.register_module()
class FastPad(Pad):
    """mmcv's Pad, but does not copy what already has the padded size."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        image, labels = results["img"], results.get("gt_seg_map")
        size = self.size and self.size[::-1]
        arrays = [image] if labels is None else [image, labels]
        if not all(_is_plain(array) and array.shape[:2] == size for array in arrays):
            return super().transform(results)
        results["pad_shape"] = image.shape
        results["pad_fixed_size"] = self.size
        results["pad_size_divisor"] = self.size_divisor
        results["img_shape"] = size
        return results


@TRANSFORMS.register_module()
class FastPackSegInputs(PackSegInputs):
    """mmseg's PackSegInputs, but splits 8-bit colour images into planes with OpenCV."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        image = results["img"]
        if not _is_plain(image) or image.ndim != 3:
            return super().transform(results)
        planes = np.empty((3, *image.shape[:2]), np.uint8)
        cv2.split(image, list(planes))
        packed = super().transform({key: value for key, value in results.items() if key != "img"})
        return {"inputs": torch.from_numpy(planes), **packed}


def _is_plain(array: npt.NDArray[Any]) -> bool:
    """Whether it is an 8-bit mask or colour image. (OpenCV would drop a third axis of length 1.)"""
    return array.dtype == np.uint8 and (array.ndim == 2 or array.shape[2:] == (3,))


FAST: dict[type, type] = {
    LoadAnnotations: LoadAnnotationsFast,
    RandomCrop: FastRandomCrop,
    RandomFlip: FastRandomFlip,
    Pad: FastPad,
    PhotoMetricDistortion: FastPhotoMetricDistortion,
    PackSegInputs: FastPackSegInputs,
}


def use_fast_transforms(node: Any) -> int:
    """Puts the fast transforms into a (part of a) config with default scope mmseg, in place; how many."""
    return swap_in(node, FAST)


def swap_in(node: Any, others: dict[type, type], where: Callable[[Any], bool] = lambda _: True) -> int:
    """Replaces transforms in a (part of a) config by `others`, which are registered with mmseg, if `where`
    accepts the transform's description; in place; returns how many.

    A `type` is replaced if it means exactly one of the stock classes, by any name or as a class, at any depth
    (dataset wrappers, RandomChoice); a user's own class, even if registered under a stock name, stays, and so
    does one that another package looks up.
    """
    if isinstance(node, (list, tuple)):
        return sum(swap_in(value, others, where) for value in node)
    if not isinstance(node, dict):
        return 0
    swapped = sum(swap_in(value, others, where) for value in list(node.values()))
    kind = node.get("type")
    # Only names that end like a stock class are looked up: looking up unknown names is slow.
    if isinstance(kind, str) and kind.rpartition(".")[2] in {stock.__name__ for stock in others}:
        kind = TRANSFORMS.get(kind)
    ours = node.get("_scope_", "mmseg") == "mmseg"
    if isinstance(kind, type) and kind in others and ours and where(node):
        node["type"] = others[kind].__name__
        swapped += 1
    return swapped
