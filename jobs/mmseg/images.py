"""Which images are meant, where their results go, and how to read them as people see them.

A model's input is read by its config's own steps; `read` is for pictures that people look at.
"""

from __future__ import annotations

import contextlib
import glob
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jobs.catalog.listing import ENDINGS, walk
from jobs.run.errors import UserError, one_line
from jobs.run.output import is_marked
from jobs.run.windows import MOST_PIXELS

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "JPEG2000")
"""Formats that are read, by content, whatever the name says. Pillow has forty more, and for one of them (EPS)
starts Ghostscript."""

Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # Pillow's own limit, at which it raises at twice the value, is lower


def find(asked: Sequence[str]) -> list[Path]:
    """The images meant by files, folders (all images below them except results), and globs; each image once,
    in this order.

    Raises UserError for one that matches nothing.
    """
    found: dict[Path, None] = {}
    for text in asked:
        path = Path(text)
        if path.is_dir():
            files = (Path(at, name) for at, names in walk(path, is_marked) for name in names)
            matches = sorted(one for one in files if one.suffix.lower() in ENDINGS and one.is_file())
        elif path.is_file():
            matches = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(text, recursive=True))
            matches = [match for match in matches if match.is_file()]
        if not matches:
            raise UserError(f"no images at {text}: give files, folders of images, or globs")
        found.update(dict.fromkeys(match.resolve() for match in matches))
    return list(found)


def names(images: Sequence[Path]) -> list[Path]:
    """Where each image's results go below the output folder, without ending: its path below what all have in
    common, so that equal names in different folders do not meet; a repeated stem keeps its ending."""
    if not images:
        return []
    common = Path(os.path.commonpath([image.parent for image in images]))
    return [Path(name) for name in unlike([str(image.relative_to(common)) for image in images])]


def unlike(paths: Sequence[str]) -> Iterator[str]:
    """Each path without its extension, except where that would be ambiguous; all are distinct."""
    times = Counter(os.path.splitext(path)[0] for path in paths)
    alone = {stem for stem, number in times.items() if number == 1}
    taken = set(alone)
    for path in paths:
        found = os.path.splitext(path)[0]
        if found not in alone:
            folder, name = os.path.split(path)
            found = distinct(os.path.join(folder, name.replace(".", "_")), taken)
        yield found


def distinct(text: str, taken: set[str]) -> str:
    """The text, with underscores appended until it is not in `taken`, to which it is then added."""
    while text in taken:
        text += "_"
    taken.add(text)
    return text


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The image, with only its header read by Pillow. Raises UserError if it has more than MOST_PIXELS."""
    with unbounded(path) as file:
        if file.width * file.height > MOST_PIXELS:
            raise UserError(
                f"{path} has {file.width:,} × {file.height:,} pixels, at most {MOST_PIXELS:,} are read: "
                "cut it into tiles, or make it smaller"
            )
        yield file


@contextlib.contextmanager
def unbounded(path: Path) -> Iterator[Image.Image]:
    """The same for images of any size, whose pixels are not decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warning about what is checked here
        Image.MAX_IMAGE_PIXELS = None
        try:
            file = Image.open(path, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = MOST_PIXELS
        with file:
            yield file


def size(path: Path) -> tuple[int, int] | None:
    """Width and height from the header; None if Pillow cannot read it."""
    try:
        with unbounded(path) as file:
            return file.size
    except Exception:  # of a broken file: reading it will report that
        return None


def is_turned(path: Path) -> bool:
    """Whether an image's EXIF orientation is not upright."""
    try:
        with unbounded(path) as file:
            return file.getexif().get(0x0112, 1) != 1
    except Exception:
        return False


def start_no_ghostscript() -> None:
    """Keeps Pillow from opening EPS in this process, even in a config's loading steps: it would start
    Ghostscript."""
    Image.init()
    Image.OPEN.pop("EPS", None)
    Image.ID[:] = [kind for kind in Image.ID if kind != "EPS"]


def read(path: Path, turned: bool = True) -> np.ndarray:
    """An image as RGB (H × W × 3, uint8), including grey, palette, 16-bit and transparent ones (on black).
    `turned`: upright, according to its EXIF.

    Raises UserError for a file that is none of FORMATS, a broken one, and one of more than MOST_PIXELS.
    """
    try:
        with opened(path) as file:
            return rgb(upright(file) if turned else file)
    except UserError:
        raise
    except Exception as error:
        # Decoders raise anything for a broken file: struct.error, KeyError, MemoryError, …
        raise unreadable(path, error) from None


def loaded(load: Any, path: Path) -> Any:
    """The result of the config's first step for an image's path. Raises UserError if it cannot read it."""
    try:
        found = load({"img_path": str(path), "seg_fields": []})
    except Exception as error:  # a decoder raises anything for a broken file
        raise unreadable(path, error) from None
    if found is None:  # LoadImageFromFile(ignore_empty=True)
        raise UserError(f"{path} cannot be read as an image")
    return found


def unreadable(path: Path, error: BaseException) -> UserError:
    try:
        empty = not path.stat().st_size
    except OSError:
        empty = False
    return UserError(f"{path} cannot be read as an image: {'it is empty' if empty else one_line(error, 200)}")


def upright(file: Image.Image) -> Image.Image:
    """The image turned upright according to its EXIF; unchanged if that is broken, as all viewers show it."""
    try:
        orientation = file.getexif().get(0x0112, 1)
    except Exception:
        return file
    return file if orientation == 1 else ImageOps.exif_transpose(file)


def rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float32)
        # 16-bit grey has a fixed range; other deep images only the range of their values.
        top = 65535.0 if image.mode.startswith("I;16") or values.max() > 255 else 255.0
        return np.repeat((values * (255 / top)).clip(0, 255).round().astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        # On black, a colour is scaled by its opacity.
        black = Image.new("RGB", image.size)
        black.paste(image, mask=image.getchannel("A"))
        return np.asarray(black)
    return np.asarray(image.convert("RGB"))
