"""Compares what a config's loading step reads from an image with what is stored in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from jobs.prepare.own import images

ROUNDING = 2
"""The most by which two decoders may differ for a lossy image."""


def is_usual(path: Path) -> bool:
    """Whether a file, judged by its header, is not a TIFF that readers may interpret differently."""
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            return bool(page.samplesperpixel == {0: 1, 1: 1, 2: 3}.get(page.photometric))
    except Exception:  # not a TIFF, or a broken one, which its reader will report
        return True


def unread(load: Callable[[dict[str, Any]], Any], path: Path) -> str:
    """Why a training could not read the image with its loading step; "" if it can."""
    try:
        return "" if load({"img_path": str(path), "seg_fields": []}) is not None else "it gives nothing"
    except Exception as error:
        return images.short(error)


def misread(load: Callable[[dict[str, Any]], Any], path: Path) -> bool:
    """Whether a loading step returns pixels that differ from those stored without alpha: because alpha is
    mixed into the colours, or bands are misinterpreted. Compares as many bands as it returns."""
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
