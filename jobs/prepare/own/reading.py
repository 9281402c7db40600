"""What a config's loading step makes of an image, against what is stored in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from jobs.prepare.own import images

ROUNDING = 2
"""Two decoders may differ by that in a lossy image."""


def is_usual(path: Path) -> bool:
    """Whether a file is none of the TIFFs that readers make different things of: by its header."""
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            return bool(page.samplesperpixel == {0: 1, 1: 1, 2: 3}.get(page.photometric))
    except Exception:  # no TIFF, or a broken one, which its reader will say
        return True


def unread(load: Callable[[dict[str, Any]], Any], path: Path) -> str:
    """Why a training could not read the image by its loading step; "" if it can."""
    try:
        return "" if load({"img_path": str(path), "seg_fields": []}) is not None else "it gives nothing"
    except Exception as error:
        return images.short(error)


def misread(load: Callable[[dict[str, Any]], Any], path: Path) -> bool:
    """Whether a loading step that reads the image gives other pixels than are stored without alpha: that is
    an alpha mixed into the colours, or bands taken for something else. As many bands as are asked for."""
    try:
        content = images.read_file(path)
        stored = images.read(content).astype(np.float32)
        found = np.asarray(load({"img_path": str(path), "seg_fields": []})["img"], np.float32)
    except Exception:
        return False
    found = found[..., None] if found.ndim == 2 else found
    if stored.shape[2] == 1:
        stored = np.repeat(stored, found.shape[2], 2)
    every = [images.turned(stored, way) for way in range(1, 9)]
    like = [one for one in every if one.shape == found.shape]
    orders = [one for each in like for one in (each, each[..., ::-1])]
    return bool(like) and not any(np.abs(one - found).max() <= ROUNDING for one in orders)
