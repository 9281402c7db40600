"""Limits on what is segmented at once: tiles of an image, which an optional library reads, and parts of many
images."""

from __future__ import annotations

import importlib.util
import re

from jobs.run.errors import UserError

MOST_PIXELS = 1 << 28
"""The most pixels of an image read whole; segmenting takes about 25 bytes per pixel (docs/security.md)."""


def lacking() -> str:
    """Why images cannot be read by windows in this environment; "" if they can."""
    if importlib.util.find_spec("rasterio") is not None:
        return ""
    return "to segment in tiles needs rasterio, not installed here: env/setup.sh --with geotiff installs it"


SMALLEST, LARGEST = 64, 8192
"""The allowed sides of a tile, in pixels."""


def check_tile(tile: int | None, overlap: int | None) -> None:
    """Raises UserError for impossible tile sizes or overlaps."""
    if tile is None and overlap is not None:
        raise UserError("--overlap is for --tile: it says how much of two tiles is the same")
    if tile is not None and not SMALLEST <= tile <= LARGEST:
        raise UserError(f"--tile must be from {SMALLEST} to {LARGEST} pixels, not {tile}")
    if tile is not None and overlap is not None and not 0 <= overlap <= tile // 2:
        raise UserError(f"--overlap must be from 0 to half a tile ({tile // 2} pixels), not {overlap}")


def share_of(text: str) -> tuple[int, int]:
    """(I, N) for --part I/N. Raises UserError if `text` is not a part."""
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--part must be I/N, such as 1/4, with I from 1 to N, not {text!r}")
    return int(found[1]), int(found[2])
