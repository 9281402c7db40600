"""Checks VOC's own masks, which are palette or grey PNGs."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from jobs.prepare.voc.sbd import BadMask
from jobs.run.png import MOST_PIXELS, decode_fast, png_size

Size = tuple[int, int]


def own_mask_size(content: bytes) -> Size:
    """(width, height) of one of VOC's masks; checks every label. Raises BadMask or BadImage."""
    size = png_size(content)
    labels = decode_mask(content)
    check_labels(labels)
    return size


def decode_mask(content: bytes) -> np.ndarray:
    """Labels of a mask PNG, H×W uint8, palette or grey. Raises BadMask."""
    labels = decode_fast(content)
    if labels is not None:
        return labels
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.mode not in ("P", "L"):
                raise BadMask(f"is a PNG of mode {image.mode}, not a mask")
            if image.width * image.height > MOST_PIXELS:
                raise BadMask(f"is a mask of {image.width}×{image.height}")
            return np.asarray(image)
    except BadMask:
        raise
    except Exception as error:  # a decoder raises anything, down to struct.error
        raise BadMask(f"is damaged ({error})") from None


def check_labels(labels: np.ndarray) -> None:
    """Raises BadMask for a label that is neither a class (0 to 20) nor void (255)."""
    if ((labels > 20) & (labels < 255)).any():
        raise BadMask(f"has label {int(labels[labels < 255].max())}; labels are 0 to 20 and 255")
