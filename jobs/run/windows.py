"""How much of what is to be segmented is done at once: of an image tiles, read by a library that need not be
there; of many images a part."""

from __future__ import annotations

import importlib.util
import re

from jobs.run.errors import UserError

MOST_PIXELS = 1 << 28
"""Of an image that is read whole; a segmentation takes some 25 bytes a pixel (docs/security.md)."""


def lacking() -> str:
    """Why no image can be read by windows in this environment; "" if it can."""
    if importlib.util.find_spec("rasterio") is not None:
        return ""
    return "to segment in tiles needs rasterio, not installed here: env/setup.sh --with geotiff installs it"


SMALLEST, LARGEST = 64, 8192
"""Sides of a tile."""


def check_tile(tile: int | None, overlap: int | None) -> None:
    """Raises UserError for tiles that cannot be."""
    if tile is None and overlap is not None:
        raise UserError("--overlap is for --tile: it says how much of two tiles is the same")
    if tile is not None and not SMALLEST <= tile <= LARGEST:
        raise UserError(f"--tile must be from {SMALLEST} to {LARGEST} pixels, not {tile}")
    if tile is not None and overlap is not None and not 0 <= overlap <= tile // 2:
        raise UserError(f"--overlap must be from 0 to half a tile ({tile // 2} pixels), not {overlap}")


def share_of(text: str) -> tuple[int, int]:
    """(I, N) of --part I/N. Raises UserError for what is no part."""
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--part must be I/N, such as 1/4, with I from 1 to N, not {text!r}")
    return int(found[1]), int(found[2])
