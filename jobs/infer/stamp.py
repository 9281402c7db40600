"""How a mask was made, stored in it, so that an inference that is started again knows what is done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import xxhash

from jobs.engine import checkpoints
from jobs.infer import raster
from jobs.mmseg import images
from jobs.mmseg import model as models
from jobs.run.digests import digest
from jobs.run.directory import Run

KEY = "Description"
"""The key of a PNG's text chunk, also used by GDAL."""


def common(run: Run, cfg: Any, checkpoint: Path, tiling: Any) -> str:
    """What all images of an inference have in common: weights, config, tiles."""
    parts = (checkpoints.digest(checkpoint), _of_config(run, cfg), repr(tiling))
    return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())


def _of_config(run: Run, cfg: Any) -> str:
    """Of an untrained run, which has no resolved config yet, its overrides and bases count, too; its own
    folder, which `cfg` names, does not: each inference with an exported model has another."""
    if run.config.is_file():
        return digest(run.config, "sha256")
    # Imported late, because it takes seconds, and needs compat.prepare().
    from mmengine.config import Config

    from jobs.mmseg import config

    return config.digest(Config({"model": cfg.model, "test": models.innermost(cfg.test_dataloader.dataset)}))


def of(inference: str, image: Path) -> str:
    """`common` with the state of the image. Raises OSError if it does not exist."""
    status = os.stat(image)
    # In capitals, because rasterio capitalises what it passes to GDAL's PNG writer.
    return f"BATON {inference.upper()} {status.st_size} {status.st_mtime_ns}"


def is_on(mask: Path, stamp: str) -> bool:
    """Whether a mask exists, is intact, and has this stamp."""
    if not mask.is_file():
        return False
    if mask.suffix == ".tif":
        return raster.is_stamped(mask, stamp)
    try:
        with images.unbounded(mask) as file:
            if file.info.get(KEY) != stamp:
                return False
            file.verify()  # the checksum of every chunk
    except Exception:  # a decoder raises anything for a broken file
        return False
    return True
