"""The findings about a dataset, as one table: what is wrong, in which file, and the fix."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from jobs.catalog.classes import IGNORED, IGNORES, Classes
from jobs.prepare.progress import say
from jobs.run.errors import UserError

SHOWN = 5
"""The most files that the table names per kind of finding; the findings file has all."""

ERROR, WARNING = "error", "warning"


class Finding(msgspec.Struct, frozen=True):
    level: str
    """`error` or `warning`."""
    kind: str
    """A few words that all findings of a kind share."""
    file: str
    text: str
    fix: str


def error(kind: str, file: str, text: str, fix: str) -> Finding:
    return Finding(ERROR, kind, visible(file), visible(text), fix)


def warning(kind: str, file: str, text: str, fix: str) -> Finding:
    return Finding(WARNING, kind, visible(file), visible(text), fix)


def label_of(name: str, classes: Classes, file: str, unknown: set[str], found: list[Finding]) -> int | None:
    """The class of a name, or IGNORED; None for an unknown one, reported once (then it is in `unknown`)."""
    if name in classes.names:
        return classes.names.index(name)
    if name.lower() in IGNORES:
        return IGNORED
    if name not in unknown:
        unknown.add(name)
        fix = "add it to the classes file, or rename it"
        found.append(error("class unknown", file, f"{name!r} is no class", fix))
    return None


def visible(text: str) -> str:
    """Text from file names and labels, made safe: control characters and undecodable bytes become escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def by_kind(found: Iterable[Finding]) -> list[list[Finding]]:
    """Findings grouped by kind, errors first, kinds in the order of their first finding."""
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for one in found:
        kinds.setdefault((one.level, one.kind), []).append(one)
    return [kinds[key] for key in sorted(kinds, key=lambda key: key[0])]


def show(found: list[Finding]) -> None:
    """Prints the table; nothing if nothing was found."""
    for group in by_kind(found):
        first = group[0]
        say(f"{first.level.upper():8}{first.kind}: {len(group):,}")
        for one in group[:SHOWN]:
            say(f"        {one.file}: {one.text}" if one.file else f"        {one.text}")
        if len(group) > SHOWN:
            say(f"        … and {len(group) - SHOWN:,} more")
        say(f"        fix: {first.fix}")


def table(found: list[Finding]) -> bytes:
    """All findings, tab-separated, for a spreadsheet or script."""
    lines = ["level\tkind\tfile\ttext\tfix"]
    for group in by_kind(found):
        for one in group:
            cells = (one.level, one.kind, one.file, one.text, one.fix)
            lines.append("\t".join(" ".join(cell.split()) for cell in cells))
    return ("\n".join(lines) + "\n").encode()


def summary(found: list[Finding]) -> list[str]:
    """One line per kind, for the manifest."""
    lines = []
    for group in by_kind(found):
        first = group[0]
        where = f"{first.file}: " if first.file else ""
        more = f" (and {len(group) - 1:,} more)" if len(group) > 1 else ""
        lines.append(f"{first.kind}: {where}{first.text}{more}")
    return lines


def stop_at_errors(found: list[Finding], what: str, where: str) -> None:
    """Raises UserError if there is an error among the findings. `where`: the file with all of them."""
    errors = [one for one in found if one.level == ERROR]
    if errors:
        first = errors[0]
        named = f"{first.file}: " if first.file else ""
        more = f" (and {len(errors) - 1:,} more errors)" if len(errors) > 1 else ""
        raise UserError(f"{what}: {named}{first.text}{more}; {first.fix}; all findings: {where}")
