"""Writes the dataset into the staging folder: images (linked or copied), label masks, lists, description."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import tifffile
from numpy.typing import NDArray

from jobs.catalog.manifest import Entry
from jobs.prepare import workers
from jobs.prepare.own import images, scan
from jobs.prepare.own.judge import Bands, Pair
from jobs.prepare.own.scan import How, Row
from jobs.prepare.own.sources import Item
from jobs.prepare.progress import task
from jobs.prepare.voc.build import put
from jobs.run.deflate import content_digest
from jobs.run.png import encode_grey

BATCH = 32
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES)
"""Errors on making a hard link: another file system, one without links, or someone else's file."""
SAMPLE = 1000
"""Training images, spread evenly over the list, from which mean and standard deviation are computed."""


class Plan(msgspec.Struct):
    """Where one item goes."""

    item: Item
    row: Row
    image: str
    """The image's path below the dataset's folder."""
    mask: str
    convert: bool
    link_mask: bool


class Job(msgspec.Struct):
    """What all items have in common."""

    staging: str
    how: How
    table: dict[int, int]
    bands: Bands
    copy: bool


def plan(pairs: Sequence[Pair], bands: Bands, table: dict[int, int]) -> tuple[list[Plan], str]:
    """(where each item goes, the suffix of all images; "" if they have several: names then keep theirs)."""
    suffixes = [suffix_of(row, bands) for _, row in pairs]
    common = suffixes[0] if len(set(suffixes)) == 1 else ""
    labels = all(table.get(value) == value for value in table)
    plans = []
    for (item, row), suffix in zip(pairs, suffixes, strict=True):
        stem = below_split(item)
        name = stem if common else f"{stem}{suffix}"
        # A palette or grey PNG whose values are already the classes can be used as it is.
        linked = row.plain_mask and labels
        plans.append(
            Plan(
                item,
                row,
                f"img_dir/{item.split}/{stem}{suffix}",
                f"ann_dir/{item.split}/{name}.png",
                not as_it_is(row, bands),
                linked,
            )
        )
    return plans, common


def below_split(item: Item) -> str:
    """The image's path without its suffix, and without its split's folder."""
    return item.stem.removeprefix(f"{item.folder}/") if item.folder else item.stem


def as_it_is(row: Row, bands: Bands) -> bool:
    """Whether the config's reader reads the right pixels from the file as it is."""
    assert row.picture
    form, plain = row.picture.format, row.picture.plain
    if bands.reader == "tiff":
        return form == "TIFF" and plain
    return plain and not (bands.reader == "png16" and row.picture.alpha)


def suffix_of(row: Row, bands: Bands) -> str:
    assert row.picture
    if bands.reader == "tiff":
        return ".tif"
    return images.SUFFIX_OF[row.picture.format] if as_it_is(row, bands) else ".png"


def list_of(plans: list[Plan], split: str, suffix: str) -> list[str]:
    """The names in the list, as the dataset class reads them, sorted."""
    names = [one.image.removeprefix(f"img_dir/{split}/") for one in plans if one.item.split == split]
    return sorted(name[: len(name) - len(suffix)] if suffix else name for name in names)


def write(plans: list[Plan], job: Job, processes: int | None) -> tuple[list[Entry], int]:
    """(the entries of all images and masks, how many of them are hard links)."""
    for one in plans:
        for path in (one.image, one.mask):
            Path(job.staging, path).parent.mkdir(parents=True, exist_ok=True)
    count = processes or (workers.cores() if len(plans) > scan.PARALLEL_FROM else 1)
    with workers.start(count) as pool, task("writing the dataset", len(plans), "images") as advance:
        for at in range(0, len(plans), BATCH):
            pool.submit(write_some, plans[at : at + BATCH], job)
            advance(len(plans[at : at + BATCH]))
        results = pool.results()
    return [entry for entries, _ in results for entry in entries], sum(links for _, links in results)


def write_some(plans: list[Plan], job: Job) -> tuple[list[Entry], int]:
    """Runs in a worker."""
    entries, links = [], 0
    staging = Path(job.staging)
    for one in plans:
        row = one.row
        if one.convert:
            entries.append(put(staging, one.image, converted(one, job)))
        else:
            linked = place(one.item.image, staging, one.image, job.copy)
            links += linked is None
            entries.append(linked or Entry(one.image, row.image_bytes, row.image_digest))
        linked = place(one.item.mask, staging, one.mask, job.copy) if one.link_mask else None
        if linked is None and one.link_mask:
            links += 1
            content = (staging / one.mask).read_bytes()
            linked = Entry(one.mask, len(content), content_digest(content))
        if linked is None:
            labels = scan.labels_of(one.item, row, job.how, job.table)
            linked = put(staging, one.mask, encode_grey(labels))
        entries.append(linked)
    return entries, links


def place(source: str, staging: Path, target: str, copy: bool) -> Entry | None:
    """Links a file, or copies it; returns the entry of a copy."""
    real, path = os.path.realpath(source), staging / target
    if not copy:
        try:
            if path.exists() and not path.samefile(real):
                path.unlink()
            if not path.exists():
                os.link(real, path)
            return None
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
    if path.exists() and path.samefile(real):  # linked by an earlier start without --copy
        path.unlink()
    return put(staging, target, Path(real).read_bytes())


def converted(one: Plan, job: Job) -> bytes:
    """The image, converted losslessly to a format for the config's reader."""
    pixels = pixels_of(one.item, one.row, job.how)
    if job.bands.reader == "tiff":
        return tiff(pixels)
    if job.bands.reader == "colour" and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, 2)
    in_order = pixels[..., ::-1] if pixels.shape[2] == 3 else pixels
    done, content = cv2.imencode(".png", np.ascontiguousarray(in_order))
    assert done
    return bytes(content)


def tiff(pixels: NDArray[Any]) -> bytes:
    """A TIFF with bands last, one image, uncompressed: tifffile reads it without further packages."""

    content = io.BytesIO()
    flat = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    tifffile.imwrite(
        content, flat, photometric="minisblack", planarconfig="contig" if flat.ndim == 3 else None
    )
    return content.getvalue()


def pixels_of(item: Item, row: Row, how: How) -> NDArray[Any]:
    """H×W×bands as the training will see them."""
    assert row.picture
    pixels = images.read(images.read_file(Path(item.image)))
    return pixels if how.ignore_exif else images.turned(pixels, row.picture.orientation)


# --- normalisation ---


def normalisation(plans: list[Plan], bands: Bands, processes: int | None) -> tuple[list[float], list[float]]:
    """(mean, standard deviation) of each band over SAMPLE of the training images, RGB before others."""
    train = [one for one in plans if one.item.split == "train"]
    step = max(1, -(-len(train) // SAMPLE))
    some = train[::step]
    count = processes or (workers.cores() if len(some) > scan.PARALLEL_FROM else 1)
    with workers.start(count) as pool, task("mean and deviation", len(some), "images") as advance:
        for at in range(0, len(some), BATCH):
            batch = some[at : at + BATCH]
            pool.submit(moments, [one.item.image for one in batch], bands.bands)
            advance(len(batch))
        parts = pool.results()
    number, sums, squares = (sum(part[index] for part in parts) for index in range(3))
    mean = sums / number
    deviation = np.sqrt(np.maximum(squares / number - mean**2, 0))
    # Do not divide a constant band by zero.
    return [round(float(one), 4) for one in mean], [round(float(one), 4) or 1.0 for one in deviation]


def moments(paths: list[str], bands: int) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """(pixels, sum, sum of squares) of each band. Runs in a worker."""
    number, sums, squares = 0, np.zeros(bands), np.zeros(bands)
    for path in paths:
        pixels = images.read(images.read_file(Path(path)))
        if pixels.shape[2] != bands:
            pixels = np.repeat(pixels, bands, 2)
        flat = pixels.reshape(-1, bands)
        number += len(flat)
        sums += flat.sum(0, dtype=np.float64)
        squares += np.einsum("ij,ij->j", flat, flat, dtype=np.float64)
    return number, sums, squares
