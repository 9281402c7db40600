"""Segments an image that is read at once, with any steps of the config's test pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jobs.infer import raster, stamp
from jobs.run.errors import UserError, one_line


def results_of(model: Any, prepared: list[Any]) -> list[Any]:
    """The model's results for images of one size that the config's steps have prepared."""
    import torch

    with torch.no_grad():
        return list(
            model.test_step({key: [one[key] for one in prepared] for key in ("inputs", "data_samples")})
        )


def segment(model: Any, prepare: Any, image: Any) -> np.ndarray:
    """The labels (H × W, uint8; uint16 with more than 256 classes) of a `loaded` image, at its own
    size."""
    (result,) = results_of(model, [prepare(image)])
    labels = result.pred_sem_seg.data.squeeze(0).cpu().numpy()
    return np.asarray(labels.astype(dtype_of(model)))


def dtype_of(model: Any) -> np.dtype[Any]:
    return np.min_scalar_type(len(model.dataset_meta["classes"]) - 1)


def mask_of(name: Path, path: Path) -> Path:
    """The file of an image's mask: a GeoTIFF if the image is georeferenced, else a PNG."""
    return name.with_name(f"{name.name}{'.tif' if raster.is_georeferenced(path) else '.png'}")


def overlay_of(name: Path) -> Path:
    return name.with_name(f"{name.name}_overlay.jpg")


def targets(name: Path) -> tuple[Path, Path, Path]:
    """All files to which an image's results may be written."""
    return name.with_name(f"{name.name}.png"), name.with_name(f"{name.name}.tif"), overlay_of(name)


def write(name: Path, path: Path, labels: np.ndarray, palette: Any, turned: bool, stamped: str = "") -> None:
    """Writes the overlay on the image as people see it (or prints why that is impossible), and then the mask:
    if that exists, both do."""
    from jobs.mmseg import pictures

    name.parent.mkdir(parents=True, exist_ok=True)
    try:
        from jobs.prepare.own import images as prepared

        shown = prepared.shown(path, turned)
        pictures.save(pictures.overlay(shown, labels, palette), overlay_of(name))
    except (UserError, ValueError, ImportError) as error:  # the mask is what counts
        print(f"no overlay: {one_line(error, 200)}", flush=True)
    mask = mask_of(name, path)
    if mask.suffix == ".png":
        pictures.save(pictures.mask(labels, palette), mask, **{stamp.KEY: stamped})
        return
    with raster.opened(path) as source:
        raster.write_mask(
            mask, lambda top, stop: labels[top:stop], source, labels.dtype, pictures.table(palette), stamped
        )
