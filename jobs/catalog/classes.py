"""classes.txt: the classes, one per line in the order of their labels, and how masks represent them.

    # a comment
    background
    disc          255 0 0
    traffic light #0000ff
    road          128 64 128   value=7
    ignore        255 255 255  value=9

A colour is needed for masks that are colour pictures; `value` where a mask's labels are not 0, 1, 2 … in the
order of the lines. `ignore`, LabelMe's `__ignore__`, is no class: what is drawn so does not count. What other
programs leave is read as well (jobs/catalog/class_tables.py). Imports nothing heavy: the login node reads it
too.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jobs.catalog import class_tables
from jobs.catalog.class_tables import IGNORES
from jobs.run import output
from jobs.run.errors import UserError

IGNORED = 255
"""The label that is ignored: BaseSegDataset's and every head's `ignore_index`."""
MOST = 254
"""The most classes in 8-bit masks, besides IGNORED and one value for unknown colours."""
MOST_VALUE = 65535

BACKGROUNDS = ("background", "_background_", "bg")
"""Names of the class of unannotated pixels."""

Colour = tuple[int, int, int]


class Classes(NamedTuple):
    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    """A colour per class; generated if the file has none."""
    values: dict[int, int]
    """Value in a label mask -> class, or IGNORED."""
    colours: dict[Colour, int]
    """Colour in a colour mask -> class, or IGNORED; empty unless every class has one."""
    numbered: bool
    """Whether the file has values; if not, they count from 0."""

    @property
    def background(self) -> int | None:
        """The class of unannotated pixels; None if there is none."""
        found = [index for index, name in enumerate(self.names) if name.lower() in BACKGROUNDS]
        return found[0] if found else None

    def called(self, label: int | None) -> str:
        """A class's name in messages; also for IGNORED, and for None (no class)."""
        if label is None:
            return "no class"
        return "`ignore`" if label == IGNORED else repr(self.names[label])


def differ(number: int, names: Sequence[str]) -> str:
    """What is wrong if a model's head has `number` classes and its dataset these; "" if nothing is."""
    if number == len(names):
        return ""
    return f"the decode_head has num_classes={number}, the dataset {len(names)} classes"


def read(path: Path) -> Classes:
    """The classes in a file. Raises UserError, naming the line, for invalid content."""
    if output.special(path):
        raise UserError(f"--classes {path} is a device or a pipe: the job reads it too, so name a file")
    try:
        content = path.read_bytes()
        # Excel's "Unicode text" has two bytes per character.
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise UserError(f"--classes {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"--classes {path} is not text (UTF-8): save it as that")
    return parse(text, str(path))


def parse(text: str, where: str) -> Classes:
    names: list[str] = []
    given: list[Colour | None] = []
    values: dict[int, int] = {}
    colours: dict[Colour, int] = {}
    numbers: list[int | None] = []
    for row in class_tables.rows(text, where):
        at = f"{where}, line {row.line}"
        label = len(names)
        if row.name.lower() in IGNORES:
            label = IGNORED
        elif row.name in names:
            raise UserError(f"{at}: the class {row.name!r} appears twice")
        if row.value is not None and row.value > MOST_VALUE:
            raise UserError(f"{at}: value={row.value}: masks have values up to {MOST_VALUE}")
        if row.value is not None:
            add(values, row.value, label, f"{at}: value={row.value}")
        if row.colour is not None:
            add(colours, row.colour, label, f"{at}: the colour {row.colour}")
        if label != IGNORED:
            names.append(row.name)
            given.append(row.colour)
            numbers.append(row.value)
    if len(names) < 2:
        raise UserError(
            f"{where} has {len(names)} class(es): at least two are needed (one may be `background`)"
        )
    if len(names) > MOST:
        raise UserError(f"{where} has {len(names)} classes: at most {MOST} are possible")
    numbered = any(value is not None for value in numbers)
    for label, value in enumerate(numbers):
        if value is None:
            add(values, label, label, f"{where}: {names[label]!r} without `value`, so {label},")
    values.setdefault(IGNORED, IGNORED)
    # Generated colours avoid those that are taken.
    made = (colour for colour in map(generated, range(1 << 16)) if colour not in colours)
    palette = tuple(colour if colour is not None else next(made) for colour in given)
    return Classes(tuple(names), palette, values, colours if None not in given else {}, numbered)


def add(to: dict, key: object, label: int, what: str) -> None:
    if to.setdefault(key, label) != label or (label != IGNORED and list(to.values()).count(label) > 1):
        raise UserError(f"{what} is taken by another line")


def generated(index: int) -> Colour:
    """PASCAL VOC's colour of a label (VOCdevkit's VOClabelcolormap.m): black, dark red, dark green, …"""
    colour = [0, 0, 0]
    for bit in range(8):
        for part in range(3):
            colour[part] |= (index >> (3 * bit + part) & 1) << (7 - bit)
    return colour[0], colour[1], colour[2]
