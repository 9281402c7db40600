"""Converts picture masks, with labels, colours or 0/255, to labels."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from jobs.catalog.classes import IGNORED, Classes, Colour
from jobs.prepare.own.images import MOST_PIXELS, BadPicture, is_tiff, orientation_of, read, short

FORMATS = ("PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM", "JPEG")
SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pgm", ".ppm")
BLURRED = (".jpg", ".jpeg")
"""Not valid masks, but considered if there are no others, so that they are refused with the reason."""

UNKNOWN = 254
"""Marks colours of no class, before the mask is refused. (There are fewer than 254 classes then.)"""
MOST_NAMED = 8
"""The most values or colours of one mask that are listed."""


class BadMask(BadPicture):
    """What is wrong with a mask, without its name; `kind`: its name in the table; `fix`: what to do."""

    def __init__(self, kind: str, text: str, fix: str) -> None:
        super().__init__(text)
        self.kind, self.fix = kind, fix


AGAIN = "export it again as PNG"
LOSSLESS = "save it as PNG without smoothing: JPEG and anti-aliasing mix the labels along edges"


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
            check_file(image, content)
            if kind == "colours" and is_of_colours(image, classes):
                return np.asarray(image.convert("RGB"))
            if image.mode in ("P", "L"):
                pixels = np.asarray(image)
                if image.mode == "P" and kind in ("auto", "binary") and classes is not None:
                    check_palette(pixels, image.getpalette("RGB") or [], classes)
                if image.mode == "L" and (depth := depth_of(image, content)) in (2, 4):
                    check_shallow(pixels, depth, classes)
                return pixels
            if image.mode == "1":
                return np.asarray(image).astype(np.uint8)
            if image.mode.startswith("I"):
                return labels16(np.asarray(image))
            if image.mode in ("LA", "RGB", "RGBA") and depth_of(image, content) == 16:
                return deep(content)
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


def check_file(image: Image.Image, content: bytes) -> None:
    """Raises BadMask for a file whose pixels may not be exactly those drawn (lossy), or not all of them."""
    lossy = {"JPEG": True, "MPO": True, "WEBP": is_lossy_webp(content)}.get(image.format or "")
    if lossy or image.info.get("compression") in ("jpeg", "tiff_jpeg"):
        name = "lossy WebP" if image.format == "WEBP" else "JPEG"
        raise BadMask("unreadable mask", f"is a {name}, in which labels are blurred", LOSSLESS)
    if pictures_in(image, content) > 1:
        fix = "make it one picture: in it, each pixel is one class"
        raise BadMask("unreadable mask", "holds several pictures (pages or frames)", fix)


def pictures_in(image: Image.Image, content: bytes) -> int:
    """The number of frames, or of pages with the first one's size. (Pillow fails on pages that are masks.)"""
    if not is_tiff(content):
        return getattr(image, "n_frames", 1)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        # TIFF 6.0, NewSubfileType: 1 is the same in small, 4 a mask of transparency.
        pages = [page.aspage() for page in file.pages]
        sizes = [(page.imagewidth, page.imagelength) for page in pages if not page.subfiletype & 5]
    return sizes.count(image.size)


def is_lossy_webp(content: bytes) -> bool:
    """Whether a WebP is lossy, from its chunks (WebP Container Specification): VP8 is, VP8L is not."""
    at = 12
    while content[:4] == b"RIFF" and at + 8 <= len(content):
        if content[at : at + 4] in (b"VP8 ", b"VP8L"):
            return content[at : at + 4] == b"VP8 "
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return False


def depth_of(image: Image.Image, content: bytes) -> int:
    """Bits per band of a PNG or TIFF; 8 for others."""
    if image.format == "PNG":
        return content[24]
    return int(max(getattr(image, "tag_v2", {}).get(258, (8,))))


def check_shallow(pixels: NDArray[Any], depth: int, classes: Classes | None) -> None:
    """Raises BadMask for 2- or 4-bit grey other than black and white: its value 1 may mean label 1, or the
    grey level 85 or 17 that Pillow returns. Accepts it if only the grey levels are values of classes:
    optimizers reduce 0, 85 and 170 to 2 bits."""
    greys, known = set(count(pixels)), classes.values if classes else {}
    labels = {grey * (2**depth - 1) // 255 for grey in greys}
    if not greys <= {0, 255} and (not greys <= known.keys() or labels <= known.keys()):
        text = "is grey of less than 8 bits: whether its values are labels or greys cannot be seen"
        raise BadMask("unreadable mask", text, "save it with 8 bits")


def deep(content: bytes) -> NDArray[Any]:
    """Pixels of several 16-bit bands, of which Pillow returns only the upper 8 bits: labels if the bands are
    equal, else colours. Raises BadMask if neither."""
    pixels = read(content)
    if pixels.shape[2] == 3 and not (pixels % 257).any():
        return (pixels // 257).astype(np.uint8)
    grey = pixels[..., 0] if pixels.shape[2] == 1 else grey_if_equal(pixels)
    if grey is None:
        text = "is a picture of colours of 16 bits that 8 bits do not hold"
        raise BadMask("colour unknown", text, "save it with 8 bits a band")
    return grey


def mode_of(content: bytes) -> str:
    """Pillow's mode of a readable mask, from its header."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return str(image.mode)


def is_turned(content: bytes) -> bool:
    """Whether a readable mask has an EXIF orientation other than upright."""
    # Without one, Pillow would decode all of a PNG in search of it.
    if b"eXIf" not in content and not is_tiff(content):
        return False
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return orientation_of(image) != 1


def is_of_colours(image: Image.Image, classes: Classes | None) -> bool:
    """Whether a single-band picture can be a colour mask: a palette, or grey whose levels are colours of
    classes, since programs that write palettes turn black and white into grey."""
    if image.mode in ("1", "L", "LA") and classes is not None:
        return all((grey, grey, grey) in classes.colours for grey in count(np.asarray(image.convert("L"))))
    return image.mode in ("P", "PA")


def contradiction(value: int, colour: Colour, classes: Classes) -> str:
    """How a value and its colour contradict each other, if they mean different classes; else ""."""
    shown, meant = classes.colours.get(colour), classes.values.get(value)
    # 255 is ignored in any colour, and white in most palettes.
    if value == IGNORED or shown is None or shown == meant:
        return ""
    named = f"{classes.called(meant)} by the classes file"
    return f"its value {value} has the colour of {classes.called(shown)}, and is {named}"


BY_WHAT = "say which counts in all masks: --mask-kind colours, or --mask-kind labels for the values"


def check_palette(indices: NDArray[Any], palette: list[int], classes: Classes) -> None:
    """Raises BadMask if an index has the colour of a class other than its own.

    Some programs save colour pictures with a palette, numbered arbitrarily in each file; others save labels
    with their own palette. Only the user knows which it is. A palette without any of the classes' colours
    says nothing, and neither does one whose greys are not labels.
    """
    colours = list(zip(palette[::3], palette[1::3], palette[2::3], strict=False))
    used = {index: colours[index] for index in count(indices) if index < len(colours)}
    for index, colour in used.items() if classes.colours else ():
        if text := contradiction(index, colour, classes):
            raise BadMask("colours contradict", f"is a palette picture: {text}", BY_WHAT)
    # Renumbering gives each grey one number, from 0 on. Other greys are in palettes for display, such as
    # Cityscapes', which has the same black for several labels.
    anew = [*used] == [*range(len({*used.values()}))]
    if anew and all(len({*colour}) == 1 and colour[0] in classes.values for colour in used.values()):
        for index, (grey, *_) in used.items():
            if grey not in (index, IGNORED):
                text = f"is a palette picture: its value {index} has the grey {grey}, which is a label too"
                fix = "save it in grey, without a palette; or, if its values count, --mask-kind labels"
                raise BadMask("colours contradict", text, fix)


def labels16(pixels: NDArray[Any]) -> NDArray[np.uint16]:
    if pixels.size and (int(pixels.min()) < 0 or int(pixels.max()) > 65535):
        raise BadMask("label outside", f"has values from {pixels.min()} to {pixels.max()}", AGAIN)
    return pixels.astype(np.uint16)


def count(labels: NDArray[Any]) -> dict[int, int]:
    """The number of pixels of each value that occurs."""
    if labels.dtype == np.uint8:
        found: NDArray[Any] = cv2.calcHist([np.ascontiguousarray(labels)], [0], None, [256], [0, 256]).ravel()
    else:
        found = np.bincount(labels.ravel())
    return {int(value): int(found[value]) for value in np.flatnonzero(found)}


def grey_if_equal(pixels: NDArray[Any]) -> NDArray[Any] | None:
    """One of three bands if they are equal, as 0/255 masks are often saved; else None."""
    first = pixels[..., 0]
    return first if (first == pixels[..., 1]).all() and (first == pixels[..., 2]).all() else None


class Painter:
    """Converts colours to classes, with a table of all 2^24."""

    def __init__(self, classes: Classes) -> None:
        self.table = np.full(1 << 24, UNKNOWN, np.uint8)
        for (red, green, blue), label in classes.colours.items():
            self.table[red << 16 | green << 8 | blue] = label

    def labels(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """The labels of H×W×3 colours. Raises BadMask for a colour that no class has."""
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
    """Converts values to classes; those not in the table, which the check refuses, to IGNORED."""
    lookup = np.full(65536 if labels.dtype == np.uint16 else 256, IGNORED, np.uint8)
    for value, label in table.items():
        if value < len(lookup):
            lookup[value] = label
    return lookup[labels]
