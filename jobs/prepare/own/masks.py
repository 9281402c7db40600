"""Masks of every kind to labels: a picture of labels or of colours, 0/255, COCO's or LabelMe's annotations.

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

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from jobs.catalog.classes import IGNORED, Classes, Colour
from jobs.prepare.own.images import MOST_PIXELS, BadPicture, read_file, short
from jobs.run.errors import MALFORMED

FORMATS = ("PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM", "JPEG")
SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pgm", ".ppm")
BLURRED = (".jpg", ".jpeg")
"""No masks, but taken for some where there are no others, and then refused by what they are."""

UNKNOWN = 254
"""In a picture of colours, before it is refused: none of the classes'. (There are fewer than 254 then.)"""
MOST_NAMED = 8
"""Values or colours of one mask that are named."""


class BadMask(BadPicture):
    """What is wrong with a mask, without its name; `kind`: what the table calls it; `fix`: what to do."""

    def __init__(self, kind: str, text: str, fix: str) -> None:
        super().__init__(text)
        self.kind, self.fix = kind, fix


AGAIN = "export it again as PNG"
LOSSLESS = "save it as PNG without smoothing: JPEG and anti-aliasing mix the labels along edges"


# --- pictures ---


def open_picture(content: bytes, kind: str = "labels", classes: Classes | None = None) -> NDArray[Any]:
    """A mask's pixels: H×W labels (uint8, uint16), or H×W×3 colours.

    A palette's indices are the labels, unless `kind` is colours; a grey picture's values too, then, unless
    they are colours of classes. If it is auto, a palette that says something else than its indices, by the
    colours of `classes`, is refused. Raises BadMask.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise BadMask(
                    "unreadable mask", f"has {image.width}×{image.height} pixels", "cut it into tiles"
                )
            if image.format == "JPEG":
                raise BadMask("unreadable mask", "is a JPEG, in which labels are blurred", LOSSLESS)
            if kind == "colours" and is_of_colours(image, classes):
                return np.asarray(image.convert("RGB"))
            if image.mode in ("P", "L"):
                pixels = np.asarray(image)
                if image.mode == "P" and kind == "auto" and classes is not None:
                    check_palette(pixels, image.getpalette("RGB") or [], classes)
                return pixels
            if image.mode == "1":
                return np.asarray(image).astype(np.uint8)
            if image.mode.startswith("I"):
                return labels16(np.asarray(image))
            if image.mode in ("LA", "La", "PA"):
                return np.asarray(image)[..., 0]
            if image.mode in ("RGB", "RGBA"):
                return np.asarray(image)[..., :3]
            raise BadMask("unreadable mask", f"has pixels of Pillow's mode {image.mode}", AGAIN)
    except BadMask:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise BadMask("unreadable mask", f"cannot be decoded ({short(error)})", AGAIN) from None


def has_palette(content: bytes) -> bool:
    """Whether a mask that can be read is a palette picture, by its header."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return image.mode in ("P", "PA")


def is_of_colours(image: Image.Image, classes: Classes | None) -> bool:
    """Whether a picture that is to be of colours, in one band, can be that. What makes a palette of a picture
    makes a grey one of black and white."""
    if image.mode in ("1", "L", "LA") and classes is not None:
        return all((grey, grey, grey) in classes.colours for grey in count(np.asarray(image.convert("L"))))
    return image.mode in ("P", "PA")


def contradiction(value: int, colour: Colour, classes: Classes) -> str:
    """What a value and its colour say, if that is two classes; else ""."""
    shown, meant = classes.colours.get(colour), classes.values.get(value)
    # 255 is ignored in whatever colour, and white in most palettes.
    if value == IGNORED or shown is None or shown == meant:
        return ""
    named = f"{classes.called(meant)} by the classes file"
    return f"its value {value} has the colour of {classes.called(shown)}, and is {named}"


BY_WHAT = "say which counts in all masks: --mask-kind colours, or --mask-kind labels for the values"


def check_palette(indices: NDArray[Any], palette: list[int], classes: Classes) -> None:
    """Raises BadMask if an index has the colour of another class than its own.

    Programs that save pictures of colours with a palette number it as they like, each file anew; others save
    labels with a palette of theirs. Which it is only the user knows. A palette without any of the classes'
    colours says nothing.
    """
    colours = list(zip(palette[::3], palette[1::3], palette[2::3], strict=False))
    for index in count(indices) if classes.colours else ():
        if index < len(colours) and (text := contradiction(index, colours[index], classes)):
            raise BadMask("colours contradict", f"is a palette picture: {text}", BY_WHAT)


def labels16(pixels: NDArray[Any]) -> NDArray[np.uint16]:
    if pixels.size and (int(pixels.min()) < 0 or int(pixels.max()) > 65535):
        raise BadMask("label outside", f"has values from {pixels.min()} to {pixels.max()}", AGAIN)
    return pixels.astype(np.uint16)


def count(labels: NDArray[Any]) -> dict[int, int]:
    """Pixels of each value that occurs."""
    if labels.dtype == np.uint8:
        found: NDArray[Any] = cv2.calcHist([np.ascontiguousarray(labels)], [0], None, [256], [0, 256]).ravel()
    else:
        found = np.bincount(labels.ravel())
    return {int(value): int(found[value]) for value in np.flatnonzero(found)}


def grey_if_equal(pixels: NDArray[Any]) -> NDArray[Any] | None:
    """The one band of three equal ones, as 0/255 masks are often saved."""
    first = pixels[..., 0]
    return first if (first == pixels[..., 1]).all() and (first == pixels[..., 2]).all() else None


class Painter:
    """Colours to classes, by a table of all 2^24."""

    def __init__(self, classes: Classes) -> None:
        self.table = np.full(1 << 24, UNKNOWN, np.uint8)
        for (red, green, blue), label in classes.colours.items():
            self.table[red << 16 | green << 8 | blue] = label

    def labels(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """Raises BadMask for a colour that no class has."""
        codes = pixels[..., 0].astype(np.uint32) << 16
        codes |= pixels[..., 1].astype(np.uint32) << 8
        codes |= pixels[..., 2]
        found: NDArray[np.uint8] = self.table[codes]
        unknown = found == UNKNOWN
        if unknown.any():
            values, counts = np.unique(codes[unknown], return_counts=True)
            order = np.argsort(-counts)[:MOST_NAMED]
            named = ", ".join(
                f"({v >> 16} {v >> 8 & 255} {v & 255}) in {n:,} pixels"
                for v, n in zip(values[order].tolist(), counts[order].tolist(), strict=True)
            )
            more = f" and {len(values) - MOST_NAMED:,} more" if len(values) > MOST_NAMED else ""
            fix = (
                LOSSLESS if len(values) > MOST_NAMED else "add `ignore R G B` or a class to the classes file"
            )
            raise BadMask("colour unknown", f"no class has the colour {named}{more}", fix)
        return found


def apply(labels: NDArray[Any], table: dict[int, int]) -> NDArray[np.uint8]:
    """Values to classes. Those that the table lacks are IGNORED: the check has refused them before."""
    lookup = np.full(65536 if labels.dtype == np.uint16 else 256, IGNORED, np.uint8)
    for value, label in table.items():
        if value < len(lookup):
            lookup[value] = label
    return lookup[labels]


# --- annotations ---


def drawn(kind: str, shapes: list[Any], width: int, height: int, classes: Classes) -> NDArray[np.uint8]:
    """H×W labels from annotations of one image. What nobody drew over is the background where there is such
    a class, else it is ignored. Raises BadMask, naming the annotation: by its id, or if it has none, by its
    number."""
    background = classes.background
    labels = np.full((height, width), IGNORED if background is None else background, np.uint8)
    draw = {"coco": draw_coco, "labelme": draw_labelme, "label-studio": draw_picture}[kind]
    for number, (label, given, *called) in enumerate(shapes, 1):
        name = f"annotation {called[0] if called else number}"
        try:
            draw(labels, label, given)
        except BadMask as error:
            raise BadMask(error.kind, f"{name}: {error}", error.fix) from None
        except Exception as error:  # whatever a wrong file leads to
            text = f"{name} cannot be drawn ({short(error)})"
            raise BadMask("bad annotation", text, "draw it anew") from None
    return labels


def draw_picture(labels: NDArray[np.uint8], label: int, given: dict[str, Any]) -> None:
    """One of Label Studio's PNGs, which is drawn wherever it is not 0."""
    pixels = open_picture(read_file(Path(given["file"])))
    there = pixels > 0 if pixels.ndim == 2 else (pixels > 0).any(2)
    if there.shape != labels.shape:
        name, (height, width) = Path(given["file"]).name, there.shape
        text = f"{name} is {width}×{height}, its image {labels.shape[1]}×{labels.shape[0]}"
        raise BadMask("sizes differ", text, "export the annotations anew, for these very images")
    labels[there] = label


def draw_coco(labels: NDArray[np.uint8], label: int, segmentation: Any) -> None:
    """One of COCO's, by its `segmentation`."""
    from pycocotools import mask as coco

    height, width = labels.shape
    if isinstance(segmentation, dict):
        size = segmentation.get("size")
        if list(size or []) != [height, width]:
            raise BadMask(
                "bad annotation",
                f"its RLE is for {size} (height, width), the image has {[height, width]}",
                REDO,
            )
        runs_of = run_lengths(segmentation)
        if sum(runs_of) != height * width or min(runs_of) < 0:
            raise BadMask("bad annotation", "its RLE has not as many pixels as the image", REDO)
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
                raise BadMask("bad annotation", "a polygon lies far outside of the image", REDO)
        runs = coco.frPyObjects(polygons, height, width)
    labels[coco.decode(coco.merge(runs)).astype(bool)] = label


def run_lengths(segmentation: dict[str, Any]) -> list[int]:
    """Pixels that are not the thing's, and that are, in turns."""
    counts = segmentation.get("counts")
    return counts if isinstance(counts, list) else unpacked(str(counts))


def area_of(annotation: dict[str, Any]) -> float:
    """Pixels of one of COCO's annotations, by which they are put in order: as it says, else computed, as not
    all programs say it. 0 for what cannot be drawn."""
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
    """Of x, y, x, y …: the shoelace formula."""
    x, y = np.array(ring, np.float64).reshape(-1, 2).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def unpacked(text: str) -> list[int]:
    """The lengths of COCO's compressed RLE (cocoapi, common/maskApi.c, rleFrString), which pycocotools takes
    without looking whether they are those of an image."""
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


REDO = "export the annotations anew, for these very images"


def draw_labelme(labels: NDArray[np.uint8], label: int, given: dict[str, Any]) -> None:
    """One of LabelMe's shapes."""
    kind = given.get("shape_type") or "polygon"
    points = [(float(x), float(y)) for x, y in given["points"]]
    if not all(math.isfinite(one) for point in points for one in point):
        raise BadMask("bad annotation", "a point is no number", "draw it anew")
    if kind == "mask":
        (left, top), (right, bottom) = ((round(x), round(y)) for x, y in points)
        content = base64.b64decode(given["mask"])
        place = labels[max(top, 0) : bottom + 1, max(left, 0) : right + 1]
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            width, height = image.size  # looked at before anything is decoded
            if min(left, top) < 0 or place.shape != (height, width) or len(image.getbands()) > 1:
                text = f"a mask of {width}×{height} in {image.mode} does not fit its box"
                raise BadMask("bad annotation", text, "draw it anew")
            part = np.asarray(image).astype(bool)
        place[part] = label
        return
    height, width = labels.shape
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    needed = {"polygon": 3, "rectangle": 2, "circle": 2}
    if kind not in needed:
        raise BadMask("bad annotation", f"a {kind} covers no area", "draw a polygon, or remove it")
    if len(points) < needed[kind]:
        raise BadMask("bad annotation", f"a {kind} of {len(points)} points", "draw it anew")
    if kind == "polygon":
        draw.polygon(points, outline=1, fill=1)
    elif kind == "rectangle":
        (x, y), (to_x, to_y) = points[:2]
        draw.rectangle((min(x, to_x), min(y, to_y), max(x, to_x), max(y, to_y)), outline=1, fill=1)
    else:
        (x, y), edge = points[0], points[1]
        radius = math.dist((x, y), edge)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)
    labels[np.asarray(canvas)] = label
