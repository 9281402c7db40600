"""Checks every image and its mask with all cores: one row each, kept on disk for a later start to continue.

A row is a pure function of the two files and of how they are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from jobs.catalog.classes import Classes
from jobs.prepare import workers
from jobs.prepare.own import drawing, images, masks
from jobs.prepare.own.findings import visible
from jobs.prepare.own.images import BadPicture, Picture
from jobs.prepare.own.masks import BadMask
from jobs.prepare.own.sources import Item
from jobs.prepare.progress import task
from jobs.run.deflate import content_digest
from jobs.run.errors import MALFORMED

ROWS = 5
"""Version of the rows: changes whenever the same files would yield different rows than before."""
BATCH = 32
MOST_VALUES = 1000
"""The most values of one mask; more cannot be labels."""
PARALLEL_FROM = 200
"""Number of images from which starting worker processes pays off."""


class Problem(msgspec.Struct):
    """An error of one file. `file` is `image` or `mask`."""

    file: str
    kind: str
    text: str
    fix: str


def problem(file: str, kind: str, found: Exception, fix: str) -> Problem:
    # Made printable here: a row is UTF-8, and the text may contain lone surrogates.
    return Problem(file, kind, visible(str(found)), visible(fix))


class Row(msgspec.Struct):
    key: str
    picture: Picture | None = None
    image_digest: str = ""
    """CRC-32 and size of the file, as in the manifest."""
    image_bytes: int = 0
    mask_size: tuple[int, int] | None = None
    """(width, height)."""
    values: dict[int, int] = {}
    """Pixels by value; for colours and annotations, by class."""
    classes: bool = False
    """Whether `values` are already classes."""
    mask_kind: str = ""
    """labels, colours, coco or labelme."""
    plain_mask: bool = False
    """Whether the mask is an 8-bit PNG whose pixels are the values."""
    palette: bool = False
    """Whether the mask is a palette picture, and was checked as one."""
    one_bit: bool = False
    """Whether the mask has one bit per pixel: black and white."""
    several_bands: bool = False
    """Whether the mask has bands besides the labels: equal ones, or transparency."""
    problems: list[Problem] = []


class How(msgspec.Struct):
    """How masks are read."""

    classes: Classes
    kind: str = "auto"
    """labels, colours, binary, or auto: a picture with three bands has colours."""
    ignore_exif: bool = False


_painters: dict[int, masks.Painter] = {}


def painter(classes: Classes) -> masks.Painter:
    """The process's only painter: its table takes 16 MiB."""
    key = hash(tuple(classes.colours.items()))
    if key not in _painters:
        _painters.clear()
        _painters[key] = masks.Painter(classes)
    return _painters[key]


def scan(items: list[Item], how: How, processes: int | None, kept: Path | None) -> Iterator[tuple[Item, Row]]:
    """Every item with its row, in order. `kept`: a file of rows, read first and appended to."""
    known_as = [sorted(one.items()) for one in (how.classes.colours, how.classes.values)]
    read_as = [ROWS, how.classes.names, known_as, how.kind, how.ignore_exif]
    salt = hashlib.blake2b(msgspec.json.encode(read_as)).digest()
    keys = [key_of(item, salt) for item in items]
    known = read_rows(kept, set(keys)) if kept else {}
    todo = [(item, key) for item, key in zip(items, keys, strict=True) if key not in known]
    count = processes or (workers.cores() if len(todo) > PARALLEL_FROM else 1)
    decoder = msgspec.msgpack.Decoder(Row)
    with (
        workers.start(count) as pool,
        task("checking images and masks", len(todo), "images") as advance,
        open(kept, "ab") if kept else contextlib.nullcontext() as file,
    ):
        for at in range(0, len(todo), BATCH):
            batch = todo[at : at + BATCH]
            pool.submit(look, batch, how)
            take(pool.ready(), known, decoder, file)
            advance(len(batch))
        take(pool.results(), known, decoder, file)
    for item, key in zip(items, keys, strict=True):
        yield item, msgspec.structs.replace(decoder.decode(known[key]), key=key)


def take(batches: list[list[bytes]], known: dict[str, bytes], decoder: Any, file: BinaryIO | None) -> None:
    for batch in batches:
        for content in batch:
            known[decoder.decode(content).key] = content
            if file is not None:
                file.write(len(content).to_bytes(4, "big") + content)


def read_rows(path: Path, wanted: set[str]) -> dict[str, bytes]:
    """The rows of an earlier start; truncates the file at the first torn or invalid one."""
    known: dict[str, bytes] = {}
    decoder = msgspec.msgpack.Decoder(Row)
    if not path.is_file():
        return known
    content = path.read_bytes()
    at = 0
    while at + 4 <= len(content):
        end = at + 4 + int.from_bytes(content[at : at + 4], "big")
        try:
            key = decoder.decode(content[at + 4 : end]).key
        except (msgspec.MsgspecError, *MALFORMED):
            break
        if key in wanted:
            known[key] = content[at + 4 : end]
        at = end
    os.truncate(path, min(at, len(content)))
    return known


def key_of(item: Item, salt: bytes) -> str:
    """A key that changes with the files' names, sizes and times, the annotations, and how they are read."""
    digest = hashlib.blake2b(salt, digest_size=16)
    for path in (item.image, item.mask):
        try:
            status = os.stat(path)
            said = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0"
        except OSError:
            said = f"{path}\0"
        digest.update(said.encode("utf-8", "surrogateescape"))
    # Not with msgspec, which refuses numbers of more than 64 bits and lone surrogates.
    digest.update(json.dumps([item.kind, item.size, item.shapes]).encode())
    return digest.hexdigest()


def look(batch: list[tuple[Item, str]], how: How) -> list[bytes]:
    """Runs in a worker."""
    encoder = msgspec.msgpack.Encoder()
    return [encoder.encode(row_of(item, key, how)) for item, key in batch]


def row_of(item: Item, key: str, how: How) -> Row:
    row = Row(key)
    row.problems = []
    try:
        content = images.read_file(Path(item.image))
        row.image_bytes, row.image_digest = len(content), content_digest(content)
        row.picture = images.look(content)
    except BadPicture as error:
        fix = "save it again, or move it away with its mask"
        row.problems.append(problem("image", "unreadable image", error, fix))
    if not item.mask:
        return row
    try:
        look_at_mask(item, row, how)
    except BadMask as error:
        row.problems.append(problem("mask", error.kind, error, error.fix))
    except BadPicture as error:
        row.problems.append(problem("mask", "unreadable mask", error, masks.AGAIN))
    return row


def look_at_mask(item: Item, row: Row, how: How) -> None:
    if item.kind != "picture":
        row.mask_kind, row.classes = item.kind, True
        row.mask_size = item.size
        if row.picture is None:
            return
        size = size_of(item, row, how)
        if max(size) > 4 * max(row.picture.width, row.picture.height):
            return  # the check of sizes says what is wrong
        row.values = masks.count(drawing.drawn(item.kind, item.shapes, *size, how.classes))
        return
    content = images.read_file(Path(item.mask))
    pixels = masks.open_picture(content, how.kind, how.classes)
    row.mask_size = (pixels.shape[1], pixels.shape[0])
    # Some versions of Pillow always turn TIFFs.
    if (images.is_tiff(content) or not how.ignore_exif) and masks.is_turned(content):
        text = "is turned by its own EXIF, and a training reads masks as they are stored"
        raise BadMask("EXIF turned", text, "save it upright, and without that")
    row.mask_kind = "labels"
    mode = masks.mode_of(content)
    row.several_bands = mode in ("LA", "La", "PA", "RGB", "RGBA")
    if pixels.ndim == 3:
        grey = (
            None if how.kind in ("auto", "colours") and how.classes.colours else masks.grey_if_equal(pixels)
        )
        if grey is None and (how.kind in ("labels", "binary") or not how.classes.colours):
            raise BadMask(
                "mask of colours",
                "is a picture of colours, and labels are needed",
                "give each class its colour in the classes file (NAME R G B), or save masks of one band",
            )
        if grey is None:
            row.mask_kind, row.classes = "colours", True
            row.values = masks.count(painter(how.classes).labels(pixels))
            return
        pixels = grey
    else:
        row.palette = how.kind == "auto" and mode in ("P", "PA")
        row.one_bit = mode == "1"
        row.plain_mask = pixels.dtype == "uint8" and content[:8] == b"\x89PNG\r\n\x1a\n" and is_8_bit(content)
    if how.kind == "colours":
        raise BadMask("colour unknown", "is a picture of labels, not of colours", "leave out --mask-kind")
    row.values = masks.count(pixels)
    if len(row.values) > MOST_VALUES:
        raise BadMask("label outside", f"has {len(row.values):,} different values: no labels", masks.LOSSLESS)


def size_of(item: Item, row: Row, how: How) -> tuple[int, int]:
    """(width, height) at which annotations are drawn."""
    assert item.size or row.picture
    return item.size or shown(row.picture, how.ignore_exif)  # type: ignore[arg-type]


def is_8_bit(content: bytes) -> bool:
    """Whether it is an 8-bit grey or palette PNG (PNG specification, 11.2.2: colour type 0 or 3)."""
    return content[24] == 8 and content[25] in (0, 3)


def shown(picture: Picture, ignore_exif: bool) -> tuple[int, int]:
    """(width, height) as the training will see it."""
    return (picture.width, picture.height) if ignore_exif else picture.shown


def labels_of(item: Item, row: Row, how: How, table: dict[int, int]) -> Any:
    """The mask's classes, H×W uint8, of an item that has passed the check. `table`: value -> class."""
    if item.kind != "picture":
        return drawing.drawn(item.kind, item.shapes, *size_of(item, row, how), how.classes)
    pixels = masks.open_picture(images.read_file(Path(item.mask)), how.kind, how.classes)
    if row.mask_kind == "colours":
        return painter(how.classes).labels(pixels)
    if pixels.ndim == 3:
        pixels = pixels[..., 0]
    return masks.apply(pixels, table)
