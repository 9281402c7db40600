"""File names: those below a folder, those that look the same, and those that no list can contain."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from jobs.catalog import listing


def composed(name: str) -> str:
    """Equal for names that look the same: macOS writes ü as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def alike(name: str) -> str:
    """Equal for names that look the same, apart from the suffix's case."""
    stem, suffix = os.path.splitext(composed(name))
    return stem + suffix.lower()


class Names:
    """Finds files by name, or if there is no exact match, by names that look the same."""

    def __init__(self, names: Iterable[str], called: Callable[[str], str] = str) -> None:
        """`called`: maps a name to what it is found by."""
        self.exact: dict[str, list[str]] = {}
        self.alike: dict[str, list[str]] = {}
        for name in names:
            self.exact.setdefault(called(name), []).append(name)
            self.alike.setdefault(alike(called(name)), []).append(name)

    def find(self, name: str) -> list[str]:
        """All files that may be meant."""
        return self.exact.get(name) or self.alike.get(alike(name), [])


def files_below(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Path below the folder -> file, for non-hidden files with these suffixes, sorted."""
    wanted = set(suffixes)
    found = {}
    for at, names in listing.walk(folder):
        for name in names:
            if os.path.splitext(name)[1].lower() in wanted and not name.startswith("."):
                path = Path(at, name)
                found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))


def unlistable(name: str) -> str:
    """Why a list of images cannot contain this name; "" if it can. Lists are read line by line, as UTF-8,
    with blanks stripped; a line is a name with or without suffix."""
    if any(one != one.strip() for one in (name, os.path.splitext(name)[0])):
        return "begins or ends with a blank, which is lost in a list"
    kinds = set(map(unicodedata.category, name))
    if "Cs" in kinds:
        return "is no text in UTF-8"
    return "has a line's end, a tab or another control character" if kinds & {"Cc", "Zl", "Zp"} else ""
