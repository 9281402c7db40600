"""Which images are meant, where their results go, and reading each as what a person sees."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jobs.errors import UserError

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def find(asked: Sequence[str]) -> list[Path]:
    """Files as they are, folders with all images below them, and globs; each image once, in this order.

    Raises UserError for one that matches nothing.
    """
    found: dict[Path, None] = {}
    for text in asked:
        path = Path(text)
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in ENDINGS)
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(text, recursive=True))
            matches = [match for match in matches if match.is_file()]
        if not matches:
            raise UserError(f"no image at {text}: give files, folders with images, or globs")
        found.update(dict.fromkeys(match.resolve() for match in matches))
    return list(found)


def names(images: Sequence[Path]) -> list[Path]:
    """Where each image's results go below the output folder, without ending: its path below what all have in
    common, so that equal names in different folders do not meet; a repeated stem keeps its ending."""
    if not images:
        return []
    common = Path(os.path.commonpath([image.parent for image in images]))
    below = [image.relative_to(common) for image in images]
    stems = [path.with_suffix("") for path in below]
    times = Counter(stems)
    return [
        stem if times[stem] == 1 else path.with_name(path.name.replace(".", "_"))
        for stem, path in zip(stems, below, strict=True)
    ]


def read(path: Path) -> np.ndarray:
    """An image as RGB (H × W × 3, uint8), turned upright as its EXIF says; grey, palette, 16-bit and
    transparent ones (on black) included. Raises UserError for a file that is no image, or a broken one."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):
                values = np.asarray(image, np.float64)
                # 16-bit grey has a fixed range; other deep images only that of their values.
                top = 65535.0 if image.mode.startswith("I;16") or values.max() > 255 else 255.0
                image = Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image: {' '.join(str(error).split())}") from None
