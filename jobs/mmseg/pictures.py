"""Label maps as pictures: palette masks that any viewer shows in colour, and overlays on the image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jobs.run.directory import write_atomically

IGNORED = (224, 224, 192)
"""PASCAL VOC's colour for label 255."""


BAND = 1 << 18
"""Pixels blended at a time."""


def table(palette: Sequence[Sequence[int]]) -> np.ndarray:
    """N × 3 RGB colours (uint8): those of the classes, then black. N is 256 (65,536 for more than 256
    classes); with at most 255 classes, entry 255 is VOC's border colour."""
    colours = np.zeros((256 if len(palette) <= 256 else 1 << 16, 3), np.uint8)
    colours[: len(palette)] = np.asarray(palette, np.uint8)
    if len(palette) < 256:
        colours[255] = IGNORED
    return colours


def mask(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> Image.Image:
    """A label map (H × W, uint8) as a palette image, whose pixel values are the labels; uint16 becomes 16-bit
    grey, since palettes have at most 256 colours."""
    if labels.dtype == np.uint16:
        return Image.fromarray(np.ascontiguousarray(labels))
    image = Image.fromarray(np.ascontiguousarray(labels, np.uint8), mode=None).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(table(palette).reshape(-1).tolist())
    return image


def overlay(
    image: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]], opacity: float = 0.5
) -> Image.Image:
    """The labels' colours over an RGB image (H × W × 3, uint8) of the same size; class 0 keeps the image
    where the palette paints it black (VOC's background). Raises ValueError for labels of another size."""
    if image.shape[:2] != labels.shape:
        raise ValueError(f"the image is {size(image)}, its labels are {size(labels)}")
    colours = table(palette)
    shown = np.empty(image.shape, np.uint8)
    # In bands: as floats, a large image would take 24 bytes per pixel.
    rows = max(1, BAND // max(1, image.shape[1]))
    for top in range(0, len(image), rows):
        part, painted = image[top : top + rows], colours[labels[top : top + rows]]
        mixed = (part * (1 - opacity) + painted * opacity).round()
        shown[top : top + rows] = np.where((painted.sum(axis=2) == 0)[..., None], part, mixed)
    return Image.fromarray(shown)


def size(array: np.ndarray) -> str:
    return f"{array.shape[1]} × {array.shape[0]}"


def save(image: Image.Image, path: Path, **text: str) -> None:
    """Writes a picture atomically, in the format of its extension. `text`: a PNG's text chunks."""
    buffer = io.BytesIO()
    said = PngInfo()
    for key, value in text.items():
        said.add_text(key, value)
    image.save(buffer, format={".jpg": "JPEG", ".png": "PNG"}[path.suffix], quality=92, pnginfo=said)
    write_atomically(path, buffer.getvalue())
