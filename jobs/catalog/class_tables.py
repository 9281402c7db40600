"""Reads a file of classes into rows of name, value and colour, in any of the formats that programs write.

What a number beside a name means is said by a table's first line, or by all lines: where they do not agree,
numbers belong to the names; where they can mean two things, the file is refused. Nothing is guessed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from typing import NamedTuple

from jobs.run.errors import UserError

IGNORES = ("ignore", "__ignore__")
"""Names that are not classes; LabelMe's labels.txt starts with the second."""

LINE = re.compile(
    r"(?P<name>.*?\S)"
    r"(?:[\s,;:=]+(?:\#(?P<hex>[0-9a-fA-F]{6})|(?P<rgb>\d{1,3}[\s,;]+\d{1,3}[\s,;]+\d{1,3})))?"
    r"(?:[\s,;]+value\s*=\s*(?P<value>\d{1,9}))?"
)
BEFORE = re.compile(r"(\d{1,9})(?:\s+[-=>|]+\s+|[\s,;:)=|]+|\.(?!\d)\s*)(?=\S)")
"""A number before a name, as in `0 sky`, `0: 2-wheeler`, `1) sky`; not the 2 in `2-wheeler`, nor 2.5."""
BEHIND = re.compile(r"(?<=[^\s,;:=|])(?:\s+[-=>|]+\s+|[\s,;:=|]+)(\d{1,9})$")
QUOTED = re.compile(r'"((?:[^"]|"")+)"|\'([^\']+)\'')
NUMBER = re.compile(r'(^|[,;\t]\s*)"(\d[\d\s,]*|#[0-9a-fA-F]{6})"(?=\s*(?:[,;\t]|$))')
"""A number or colour in quotes: some files have quotes around everything."""
BRACKETS = re.compile(r"(?:rgb)?[(\[]\s*(\d{1,3}[\s,]+\d{1,3}[\s,]+\d{1,3})\s*[)\]]")
"""A colour as written in Python and YAML."""
STRUCTURED = re.compile(
    r"[{\[|]|<\?|-\s|[\w\s\"']+:$|.*[:=]\s*\w*[\[{]|(names|nc|classes)\s*:"
    r"|(.*[:=]\s*\w*|\w+)\((\s*[\"'\[{]|[^)]*=|\s*$)"
)
"""A line of YAML, JSON or Python, such as what contains a list of classes; `tree(dead)` is a name."""
COMMENT = re.compile(r"\s*#(?![0-9a-fA-F]{6}[\s,;])|sep=.$")
"""A comment, or Excel's first line; a colour before a name is not a comment."""

KINDS = {
    "name": "name names class classes classname classnames label labels labelname labelnames",
    "value": "id idx index value classid classindex labelid labelvalue trainid pixelvalue grayvalue",
    "colour": "color colour rgb hex colorrgb rgbcolor hexcolor colorhex",
    "r": "r red",
    "g": "g green",
    "b": "b blue",
}
KIND = {word: kind for kind, words in KINDS.items() for word in words.split()}
"""Column name in a table's first line (only letters and digits, in lower case) -> kind."""
TELLS = "a first line that names the columns (`name,id,r,g,b`) would tell"


class Row(NamedTuple):
    line: int
    name: str
    value: int | None
    colour: tuple[int, int, int] | None


Line = tuple[int, str]


def rows(text: str, where: str) -> list[Row]:
    """The rows of a file. Raises UserError, naming the line, for what is invalid or ambiguous."""
    lines = [
        (number, line)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip(" \t,;") and not COMMENT.match(line)
    ]
    if not lines:
        return []
    for delimiter in "\t;,: ":
        names = _split(lines[0][1], delimiter)
        kinds = [KIND.get(re.sub(r"[\W_]", "", name.lower()), "") for name in names]
        if _is_head(names, kinds, delimiter):
            below = [(at, line, _split(line, delimiter)) for at, line in lines[1:]]
            return _uncounted(_under(names, kinds, below, where))
    return _free(lines, where)


def _uncounted(found: list[Row]) -> list[Row]:
    """Rows without values, if these only count the classes from 0. If `ignore` is among them, its number is
    not a class's, and the numbers after it are not the classes' positions."""
    ignored = any(row.name.lower() in IGNORES for row in found)
    if ignored or [row.value for row in found] != list(range(len(found))):
        return found
    return [row._replace(value=None) for row in found]


def colour_of(text: str, at: str) -> tuple[int, int, int] | None:
    if not text.strip(" ,;"):
        return None
    if found := re.fullmatch(r"#?([0-9a-fA-F]{6})", text.strip()):
        red, green, blue = bytes.fromhex(found[1])
    else:
        parts = re.split(r"[\s,;]+", text.strip("()[] "))
        if len(parts) != 3 or not all(part.isdecimal() and int(part) < 256 for part in parts):
            raise UserError(f"{at}: a colour has three values from 0 to 255, not {text}")
        red, green, blue = map(int, parts)
    return red, green, blue


# ------------------------------------------------------------------------------- a table with a first line


def _split(line: str, delimiter: str) -> list[str]:
    if delimiter == " ":
        return line.split()
    try:
        fields = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
    except csv.Error:  # 128 KiB in one
        return [line]
    return [one.strip() for one in fields]


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-?\d+(\.\d+)?|#[0-9a-fA-F]{6}", text))


def _is_head(names: list[str], kinds: list[str], delimiter: str) -> bool:
    known = set(kinds)
    if len(kinds) < 2 or any(map(_is_number, names)):
        return False
    named = "name" in known and bool(known & {"value", "colour"})
    return named or {"r", "g", "b"} <= known or (delimiter in "\t;," and bool(known & {"name", "value"}))


def _under(
    names: list[str], kinds: list[str], lines: list[tuple[int, str, list[str]]], where: str
) -> list[Row]:
    """The rows below a first line, which may have columns that are not needed."""
    even = [fields for *_, fields in lines if len(fields) == len(kinds)]
    numeric = [bool(even) and all(_is_number(one[at]) for one in even) for at in range(len(kinds))]
    called = [at for at, kind in enumerate(kinds) if kind == "name"]
    if len(called) != 1:
        wanted = called or [at for at, kind in enumerate(kinds) if not kind and names[at]]
        found = [at for at in wanted if not numeric[at]]
        if len(found) != 1:
            raise UserError(f"{where}: which column holds the class names? {TELLS}, with one `name`")
        kinds = [
            "name" if at == found[0] else "value" if kind == "name" and numeric[at] else kind
            for at, kind in enumerate(kinds)
        ]
    values = [at for at, kind in enumerate(kinds) if kind == "value"]
    for at, kind in enumerate(kinds):
        column = [fields[at] for fields in even]
        counts = column == [str(number) for number in range(len(column))]
        if not kind and not values and numeric[at] and len({*column}) == len(column) > 1 and not counts:
            raise UserError(f"{where}: is `{names[at]}` the masks' value? Then call it `id`, or leave it out")
    if len(values) > 1:
        both = " and ".join(f"`{names[at]}`" for at in values)
        raise UserError(f"{where}: which of the columns {both} holds the mask values? Keep only that one")
    place = kinds.index("name")
    found_rows = []
    for number, line, fields in lines:
        here = f"{where}, line {number}"
        cells = dict(zip(kinds, _even(line, fields, place, len(kinds), here), strict=True))
        value = cells.get("value", "")
        if value and not re.fullmatch(r"\d{1,9}(\.0+)?", value):
            raise UserError(f"{here}: {value!r} cannot be a mask value: those are whole numbers from 0 up")
        colour = cells.get("colour", "")
        if {"r", "g", "b"} <= cells.keys():
            colour = f"{cells['r']} {cells['g']} {cells['b']}"
        if not cells["name"]:
            raise UserError(f"{here}: there is no name in column `{names[place]}`")
        found_rows.append(
            Row(number, cells["name"], int(float(value)) if value else None, colour_of(colour, here))
        )
    return found_rows


def _even(line: str, fields: list[str], place: int, columns: int, at: str) -> list[str]:
    """A row's fields; a name may contain the delimiter if all others are numbers."""
    if len(fields) == columns:
        return fields
    tokens = list(re.finditer(r"[^\s,;:]+", line))
    end = len(tokens) - (columns - 1 - place)
    others = [one[0] for one in (*tokens[:place], *tokens[max(end, 0) :])]
    if end <= place or not all(map(_is_number, others)):
        raise UserError(f"{at}: it has {len(fields)} fields, and the first line {columns}")
    return [*others[:place], line[tokens[place].start() : tokens[end - 1].end()], *others[place:]]


# ---------------------------------------------------------------------------------- lines without a first one


def _free(lines: list[Line], where: str) -> list[Row]:
    cleaned = [(number, _cleaned(line)) for number, line in lines]
    colons = all(line.endswith(":") for _, line in cleaned)
    for number, line in cleaned:
        if STRUCTURED.match(line) and not colons:
            raise UserError(
                f"{where}, line {number}: {line[:40]!r} is of a file in YAML, JSON or Python, it seems: "
                "write the classes one a line"
            )
    number, first = cleaned[0]
    called = KIND.get(_unquoted(first).lower().replace("_", "").replace(" ", ""))
    if len(cleaned) > 1 and called == "name":  # so `red` is a class
        raise UserError(
            f"{where}, line {number}: {first!r} reads like the first line of a table: delete it, or, if it "
            f"is a class, write `{first} value=0`"
        )
    found = [(number, LINE.fullmatch(line)) for number, line in cleaned]
    parts = [(number, one) for number, one in found if one]
    before = behind = 0
    explicit = any(one["value"] for _, one in parts)
    if not explicit:
        before, behind = _numbers(parts)
        _check(parts, before, behind, where)
    rows_found = []
    for number, one in parts:
        at = f"{where}, line {number}"
        ahead, name, after = _taken(one["name"], before, behind)
        colour = colour_of(one["hex"] or one["rgb"] or (" ".join(ahead) if before == 3 else ""), at)
        counted = ahead if before == 1 else after
        value = one["value"] or (counted[0] if counted else None)
        rows_found.append(Row(number, _unquoted(name), int(value) if value else None, colour))
    return rows_found if explicit else _uncounted(rows_found)


def _cleaned(line: str) -> str:
    line = line.strip()
    # CVAT's format has two more fields, mostly empty.
    line = re.sub(r"(:[^:\s]*){2}$", "", line) if line.count(":") >= 3 else line
    return BRACKETS.sub(r"\1", NUMBER.sub(r"\1\2", line))


def _numbers(parts: Sequence[tuple[int, re.Match[str]]]) -> tuple[int, int]:
    """How many numbers precede and follow the name in all lines: as many as leave the names distinct."""
    names = [one["name"] for _, one in parts]
    before = behind = 0
    for count in range(1, 5):
        if _distinct(names, count, 0):
            before = count
    for count in range(1, 5):
        if _distinct(names, before, count):
            behind = count
    return before, behind


def _distinct(names: list[str], before: int, behind: int) -> bool:
    found = [_taken(name, before, behind) for name in names]
    own = [name.lower() for _, name, _ in found if _unquoted(name).lower() not in IGNORES]
    whole = all(len(ahead) == before and len(after) == behind for ahead, _, after in found)
    return whole and len({*own}) == len(own)


def _taken(name: str, before: int, behind: int) -> tuple[list[str], str, list[str]]:
    """Splits off up to so many numbers before and after a name: (before, name, after)."""
    ahead: list[str] = []
    after: list[str] = []
    while len(ahead) < before and (found := BEFORE.match(name)):
        ahead.append(found[1])
        name = name[found.end() :]
    while len(after) < behind and (found := BEHIND.search(name)):
        after.insert(0, found[1])
        name = name[: found.start()]
    return ahead, name, after


def _check(parts: Sequence[tuple[int, re.Match[str]]], before: int, behind: int, where: str) -> None:
    """Raises UserError if the numbers, or the fields, of all lines are ambiguous."""
    names = [_taken(one["name"], before, behind)[1].rstrip(":,;") for _, one in parts]
    coloured = [bool(one["hex"] or one["rgb"]) for _, one in parts]
    clear = (
        (before, behind) in ((0, 0), (1, 0))
        or ((before, behind) == (0, 1) and not any(one["rgb"] for _, one in parts))
        or (before == 3 and behind < 2 and not any(coloured))
    )
    numbers = (before or behind) and all(name.isdecimal() for name in names)
    inner = any(re.search(r"(?<!\S)#[0-9a-fA-F]{6}\b", name) for name in names)
    if not clear or numbers or inner:
        raise UserError(f"{where}: what stands beside the classes can mean several things: {TELLS}")
    if all(re.search(r"[,;\t]", name) and not QUOTED.fullmatch(name) for name in names):
        raise UserError(f"{where}: each line has several names: {TELLS}; or put each name between quotes")
    rest = parts[1:]
    if len(rest) > 1 and before == behind == 0 and re.search(r"[,;\t]", names[0]):
        number, line = parts[0]
        if (all(coloured[1:]) and not coloured[0]) or any(_numbers(rest)):
            raise UserError(
                f"{where}, line {number}: {line[0]!r} is not as the other lines are: if it names the "
                "columns, call them name, id, r, g, b; if it is a class, put its name between quotes"
            )


def _unquoted(name: str) -> str:
    name = name.rstrip(":,;")
    found = QUOTED.fullmatch(name)
    return (found[1] or "").replace('""', '"') or found[2] if found else name
