"""classes.txt: the classes, one a line in the order of their labels, and how masks name them.

    # a comment
    background
    disc          255 0 0
    traffic light #0000ff
    road          128 64 128   value=7
    ignore        255 255 255  value=9

A colour is needed for masks that are colour pictures; `value` where a mask's labels are not 0, 1, 2 … in the
order of the lines. `ignore`, LabelMe's `__ignore__`, is no class: what is drawn so does not count. CVAT's
labelmap.txt (`name:R,G,B:parts:actions`) and a table (`name,r,g,b`, with the label before it or not) read the
same. Imports nothing heavy: the login node reads it too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jobs.run import output
from jobs.run.errors import UserError

IGNORED = 255
"""The label that counts nowhere: BaseSegDataset's and every head's `ignore_index`."""
MOST = 254
"""Classes that fit into masks of 8 bits beside it, and beside one value for what is unknown."""
MOST_VALUE = 65535

IGNORES = ("ignore", "__ignore__")
"""Names of what is no class; LabelMe's labels.txt begins with the second."""
BACKGROUNDS = ("background", "_background_", "bg")
"""Names of the class that every pixel has which nobody has drawn over."""

LINE = re.compile(
    r"(?P<name>.*?\S)"
    r"(?:[\s,;:]+(?:\#(?P<hex>[0-9a-fA-F]{6})|(?P<rgb>\d{1,3}[\s,;]+\d{1,3}[\s,;]+\d{1,3})))?"
    r"(?:[\s,;]+value\s*=\s*(?P<value>\d{1,9}))?"
)

HEAD = re.compile(
    r".+?[\s,;:]+r(ed)?[\s,;:]+g(reen)?[\s,;:]+b(lue)?|(id|index|value)[\s,;:]+(name|class|label)\w*",
    re.IGNORECASE,
)
"""The first line of a table of classes and their colours, as a class_dict.csv has it: no class."""

COUNTED = re.compile(r"(\d{1,9})[\s,;:.)]+((?:[^\W\d]|\").*)")
"""A class behind its number, as in `0 background`, `1: disc`, `id,name,r,g,b`."""
VALUE = re.compile(r"value\s*=\s*\d+$")
QUOTED = re.compile(r'"((?:[^"]|"")+)"')
"""A field of a CSV file."""
NUMBER = re.compile(r'(^|[,;\t]\s*)"(\d+|#[0-9a-fA-F]{6})"(?=\s*(?:[,;\t]|$))')
"""One that is a number or a colour: there are files with quotes around everything."""

Colour = tuple[int, int, int]


class Classes(NamedTuple):
    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    """A colour each; made where the file gives none."""
    values: dict[int, int]
    """A label mask's value -> class, or IGNORED."""
    colours: dict[Colour, int]
    """A colour mask's colour -> class, or IGNORED; empty unless every class has one."""
    numbered: bool
    """Whether the file gives values; if not, they count from 0."""

    @property
    def background(self) -> int | None:
        """The class of what nobody has drawn over, if there is one."""
        found = [index for index, name in enumerate(self.names) if name.lower() in BACKGROUNDS]
        return found[0] if found else None

    def called(self, label: int | None) -> str:
        """A class as messages name it; also IGNORED, and None for what is no class."""
        if label is None:
            return "no class"
        return "`ignore`" if label == IGNORED else repr(self.names[label])


def differ(number: int, names: Sequence[str]) -> str:
    """What is wrong where a model's head has `number` classes and its dataset these; "" for nothing."""
    if number == len(names):
        return ""
    return f"the decode_head has num_classes={number}, the dataset {len(names)} classes"


def read(path: Path) -> Classes:
    """The classes of a file. Raises UserError, naming the line, for what cannot be meant."""
    if output.special(path):
        raise UserError(f"--classes {path} is a device or a pipe: the job reads it too, so name a file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"--classes {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--classes {path} is not text (UTF-8)") from None
    return parse(text, str(path))


def parse(text: str, where: str) -> Classes:
    names: list[str] = []
    given: list[Colour | None] = []
    values: dict[int, int] = {}
    colours: dict[Colour, int] = {}
    numbers: list[int | None] = []
    for number, line in lines_of(text):
        found = fields_of(line)
        at = f"{where}, line {number}"
        name, colour, value = name_of(found), colour_of(found, at), found["value"]
        label = len(names)
        if name.lower() in IGNORES:
            label = IGNORED
        elif name in names:
            raise UserError(f"{at}: the class {name!r} stands there twice")
        if value is not None and int(value) > MOST_VALUE:
            raise UserError(f"{at}: value={value}: masks have values up to {MOST_VALUE}")
        if value is not None:
            add(values, int(value), label, f"{at}: value={value}")
        if colour is not None:
            add(colours, colour, label, f"{at}: the colour {colour}")
        if label != IGNORED:
            names.append(name)
            given.append(colour)
            numbers.append(int(value) if value is not None else None)
    if len(names) < 2:
        raise UserError(f"{where} has {len(names)} class(es): two are the least (one may be `background`)")
    if len(names) > MOST:
        raise UserError(f"{where} has {len(names)} classes: {MOST} are the most")
    numbered = any(value is not None for value in numbers)
    for label, value in enumerate(numbers):
        if value is None:
            add(values, label, label, f"{where}: {names[label]!r} without `value`, so {label},")
    values.setdefault(IGNORED, IGNORED)
    # The palette of what has no colour avoids those that are taken.
    made = (colour for colour in map(generated, range(1 << 16)) if colour not in colours)
    palette = tuple(colour if colour is not None else next(made) for colour in given)
    return Classes(tuple(names), palette, values, colours if None not in given else {}, numbered)


def lines_of(text: str) -> list[tuple[int, str]]:
    """The lines that are classes, each with its number in the file. If all begin with a number of their own,
    it becomes their `value`, unless the numbers only count the classes from 0."""
    lines: list[tuple[int, str]] = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        # CVAT's has two more fields, mostly empty.
        line = re.sub(r"(:[^:\s]*){2}$", "", line) if line.count(":") >= 3 else line
        line = NUMBER.sub(r"\1\2", line)
        if line and not line.startswith("#") and (lines or not HEAD.fullmatch(line.replace('"', ""))):
            lines.append((number, line))
    found = [(number, COUNTED.fullmatch(line)) for number, line in lines]
    counted = [(number, int(one[1]), one[2]) for number, one in found if one and not VALUE.search(one[2])]
    if len(counted) < len(lines):
        return lines
    # With `ignore` among them its number is no class's, and those behind it are not the classes' places.
    plain = not any(name_of(fields_of(rest)).lower() in IGNORES for *_, rest in counted)
    if plain and [value for _, value, _ in counted] == list(range(len(counted))):
        return [(number, rest) for number, _, rest in counted]
    return [(number, f"{rest} value={value}") for number, value, rest in counted]


def fields_of(line: str) -> re.Match[str]:
    found = LINE.fullmatch(line)
    assert found  # any text has a name
    return found


def name_of(found: re.Match[str]) -> str:
    name = found["name"].rstrip(":,;")
    quoted = QUOTED.fullmatch(name)
    return quoted[1].replace('""', '"') if quoted else name


def add(to: dict, key: object, label: int, what: str) -> None:
    if to.setdefault(key, label) != label or (label != IGNORED and list(to.values()).count(label) > 1):
        raise UserError(f"{what} is taken by another line")


def colour_of(found: re.Match[str], at: str) -> Colour | None:
    if found["hex"]:
        red, green, blue = bytes.fromhex(found["hex"])
        return red, green, blue
    if not found["rgb"]:
        return None
    red, green, blue = map(int, re.split(r"[\s,;]+", found["rgb"]))
    if max(red, green, blue) > 255:
        raise UserError(f"{at}: a colour's parts are 0 to 255, not {found['rgb']}")
    return red, green, blue


def generated(index: int) -> Colour:
    """PASCAL VOC's colour of a label (VOCdevkit's VOClabelcolormap.m): black, dark red, dark green, …"""
    colour = [0, 0, 0]
    for bit in range(8):
        for part in range(3):
            colour[part] |= (index >> (3 * bit + part) & 1) << (7 - bit)
    return colour[0], colour[1], colour[2]
