"""Draws annotations from COCO, LabelMe and Label Studio as label maps.

COCO: https://cocodataset.org/#format-data (object detection, and its run-length encoding, by pycocotools).
LabelMe: https://github.com/wkentaro/labelme (shapes as its own labelme/utils/shape.py draws them).
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from jobs.catalog.classes import IGNORED, Classes
from jobs.prepare.own.images import read_file, short
from jobs.prepare.own.masks import BadMask, open_picture
from jobs.run.errors import MALFORMED


def drawn(kind: str, shapes: list[Any], width: int, height: int, classes: Classes) -> NDArray[np.uint8]:
    """H×W labels from the annotations of one image. Unannotated pixels are background if there is such a
    class, else ignored. Raises BadMask, naming the annotation by its id, or without one, by its number."""
    background = classes.background
    labels = np.full((height, width), IGNORED if background is None else background, np.uint8)
    draw = {"coco": draw_coco, "labelme": draw_labelme, "label-studio": draw_picture}[kind]
    for number, (label, given, *called) in enumerate(shapes, 1):
        name = f"annotation {called[0] if called else number}"
        try:
            draw(labels, label, given)
        except BadMask as error:
            raise BadMask(error.kind, f"{name}: {error}", error.fix) from None
        except Exception as error:  # an invalid file may cause anything
            text = f"{name} cannot be drawn ({short(error)})"
            raise BadMask("bad annotation", text, "draw it anew") from None
    return labels


def draw_picture(labels: NDArray[np.uint8], label: int, given: dict[str, Any]) -> None:
    """Draws one of Label Studio's PNGs wherever it is not 0."""
    pixels = open_picture(read_file(Path(given["file"])))
    there = pixels > 0 if pixels.ndim == 2 else (pixels > 0).any(2)
    if there.shape != labels.shape:
        name, (height, width) = Path(given["file"]).name, there.shape
        text = f"{name} is {width}×{height}, its image {labels.shape[1]}×{labels.shape[0]}"
        raise BadMask("sizes differ", text, "export the annotations again, for exactly these images")
    labels[there] = label


def draw_coco(labels: NDArray[np.uint8], label: int, segmentation: Any) -> None:
    """Draws a COCO annotation, given its `segmentation`."""
    from pycocotools import mask as coco

    height, width = labels.shape
    if isinstance(segmentation, dict):
        size = segmentation.get("size")
        if list(size or []) != [height, width]:
            raise BadMask(
                "bad annotation",
                f"its RLE is for {size} (height, width), but the image has {[height, width]}",
                REDO,
            )
        runs_of = run_lengths(segmentation)
        if sum(runs_of) != height * width or min(runs_of) < 0:
            raise BadMask("bad annotation", "its RLE does not have as many pixels as the image", REDO)
        runs = [coco.frPyObjects({"size": [height, width], "counts": runs_of}, height, width)]
    else:
        polygons = list(segmentation or [])
        if not polygons:
            raise BadMask("bad annotation", "it has no polygon", "remove it or draw it anew")
        for ring in polygons:
            if len(ring) < 6 or len(ring) % 2 or not all(math.isfinite(float(one)) for one in ring):
                raise BadMask(
                    "bad annotation", f"a polygon of {len(ring)} numbers", "it needs x, y of 3 points"
                )
            if max(abs(float(one)) for one in ring) > 4 * max(height, width):
                raise BadMask("bad annotation", "a polygon lies far outside the image", REDO)
        # Some parts of an object, such as one cut by a tile, may be outside.
        refuse_outside([float(one) for ring in polygons for one in ring], width, height, "polygon")
        runs = coco.frPyObjects(polygons, height, width)
    labels[coco.decode(coco.merge(runs)).astype(bool)] = label


def run_lengths(segmentation: dict[str, Any]) -> list[int]:
    """Alternating numbers of pixels outside and inside the object."""
    counts = segmentation.get("counts")
    return counts if isinstance(counts, list) else unpacked(str(counts))


def area_of(annotation: dict[str, Any]) -> float:
    """A COCO annotation's area in pixels, by which they are sorted: as given, or computed, since not all
    programs write it. 0 for what cannot be drawn."""
    with contextlib.suppress(*MALFORMED):
        if (given := float(annotation.get("area") or 0)) > 0:
            return given
    segmentation = annotation.get("segmentation")
    with contextlib.suppress(*MALFORMED):
        if isinstance(segmentation, dict):
            return float(sum(run_lengths(segmentation)[1::2]))
        if segmentation:
            return sum(polygon_area(ring) for ring in segmentation)
    with contextlib.suppress(*MALFORMED):
        _, _, width, height = annotation["bbox"]
        return float(width) * float(height)
    return 0.0


def polygon_area(ring: list[float]) -> float:
    """The area of a polygon x, y, x, y …, by the shoelace formula."""
    x, y = np.array(ring, np.float64).reshape(-1, 2).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def unpacked(text: str) -> list[int]:
    """The run lengths in COCO's compressed RLE (cocoapi, common/maskApi.c, rleFrString), which pycocotools
    uses without checking that they fit the image."""
    found: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            found.append(value + (found[-2] if len(found) > 2 else 0))
            value = shift = 0
    return found


REDO = "export the annotations again, for exactly these images"


CORNERS = {"rectangle": (2, 4), "circle": (2,), "oriented_rectangle": (4,), "rotation": (4,)}
"""LabelMe's shapes with an area, besides polygons -> their possible numbers of points. X-AnyLabeling uses the
same format, but writes all four corners of a rectangle, and rotated ones as `rotation`."""


def draw_labelme(labels: NDArray[np.uint8], label: int, given: dict[str, Any]) -> None:
    """Draws one of LabelMe's shapes."""
    kind = given.get("shape_type") or "polygon"
    points = [(float(x), float(y)) for x, y in given["points"]]
    if not all(math.isfinite(one) for point in points for one in point):
        raise BadMask("bad annotation", "a point is no number", "draw it anew")
    if kind == "mask":
        draw_mask(labels, label, given["mask"], points)
        return
    if kind != "polygon" and kind not in CORNERS:
        raise BadMask("bad annotation", f"a {kind} covers no area", "draw a polygon, or remove it")
    if len(points) < 3 if kind == "polygon" else len(points) not in CORNERS[kind]:
        raise BadMask("bad annotation", f"a {kind} of {len(points)} points", "draw it anew")
    if kind == "circle":
        (x, y), radius = points[0], math.dist(*points)
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    height, width = labels.shape
    refuse_outside([one for point in points for one in point], width, height, kind)
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    (x, y), (to_x, to_y) = points[:2]
    if kind == "circle":
        draw.ellipse(((x, y), (to_x, to_y)), outline=1, fill=1)
    elif len(points) == 2:
        draw.rectangle((min(x, to_x), min(y, to_y), max(x, to_x), max(y, to_y)), outline=1, fill=1)
    else:
        draw.polygon(points, outline=1, fill=1)
    labels[np.asarray(canvas)] = label


def draw_mask(labels: NDArray[np.uint8], label: int, coded: str, points: list[tuple[float, float]]) -> None:
    """Draws LabelMe's mask shape, from the first corner of its box, which includes the last row and column.
    The corners may be fractional, and outside of the image if it was moved."""
    (left, top), (right, bottom) = ((round(x), round(y)) for x, y in points)
    with Image.open(io.BytesIO(base64.b64decode(coded)), formats=["PNG"]) as image:
        width, height = image.size  # checked before anything is decoded
        unlike = max(abs(right - left + 1 - width), abs(bottom - top + 1 - height))
        larger = height > labels.shape[0] or width > labels.shape[1]
        if unlike > 1 or larger or len(image.getbands()) > 1:
            text = f"a mask of {width}×{height} in {image.mode} does not fit its box, or the image"
            raise BadMask("bad annotation", text, "draw it anew")
        refuse_outside([left, top, left + width, top + height], labels.shape[1], labels.shape[0], "mask")
        part = np.asarray(image).astype(bool)[max(-top, 0) :, max(-left, 0) :]
    place = labels[max(top, 0) :, max(left, 0) :][: part.shape[0], : part.shape[1]]
    place[part[: place.shape[0], : place.shape[1]]] = label


def refuse_outside(numbers: list[float], width: int, height: int, kind: str) -> None:
    """Raises BadMask for x, y, x, y … that are all outside the image (by more than a pixel, which may be
    rounding): they belong to another image or size; and for coordinates relative to the sides."""
    x, y = numbers[::2], numbers[1::2]
    if max(x) < -1 or max(y) < -1 or min(x) > width + 1 or min(y) > height + 1:
        text = f"a {kind} lies outside of the image, from {min(x):g}, {min(y):g} on"
        raise BadMask("bad annotation", text, REDO)
    shares = max(numbers) <= 1 and min(numbers) >= 0 and any(one % 1 for one in numbers)
    if shares and min(width, height) > 2:
        text = f"a {kind} lies within one pixel: its corners are shares of the image's sides, it seems"
        raise BadMask("bad annotation", text, "export the annotations in pixels")
