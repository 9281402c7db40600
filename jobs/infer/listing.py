"""The images for an inference, and where the results of each go.

A folder of 100,000 images is walked whenever its list is needed: only one folder's names are in memory at a
time.
"""

from __future__ import annotations

import glob
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jobs.catalog.listing import ENDINGS, walk
from jobs.mmseg import images
from jobs.run.errors import UserError
from jobs.run.output import is_marked


class Listing:
    """Iterating yields (image, path of its results below the output folder, no suffix), sorted by folder.

    The path is relative to the arguments' common folder, so that equal names in different folders do not
    collide; a repeated stem keeps its suffix. Each image comes once.
    """

    def __init__(self, asked: Sequence[str], leave_out: Path | None = None) -> None:
        """`asked`: files as they are, folders with all images below them, through links too, and globs.
        `leave_out`: a folder whose files are results, as are those of marked ones that are not asked for
        themselves. Raises UserError for what matches nothing."""
        self.leave_out = leave_out
        self.passed = Passed()
        folders: list[str] = []
        self.files: dict[str, set[str]] = {}
        """Folder -> names in it that are requested individually."""
        for text in asked:
            if os.path.isdir(text):
                folders.append(os.path.realpath(text))
                continue
            found = [text] if os.path.isfile(text) else matches(text)
            if not found:
                raise UserError(f"no images at {text}: give files, folders of images, or globs")
            for path in found:
                head, name = os.path.split(os.path.abspath(path))
                self.files.setdefault(os.path.realpath(head), set()).add(name)
        distinct = sorted(set(folders))
        self.folders = [one for one in distinct if not any(below(one, top) for top in distinct if top != one)]
        self.base = os.path.commonpath([*self.folders, *self.files])

    def __iter__(self) -> Iterator[tuple[Path, Path]]:
        for folder, names in self._by_folder():
            below = os.path.relpath(folder, self.base)
            for name, stem in zip(names, images.unlike(names), strict=True):
                yield Path(folder, name), Path(below, stem)

    def _by_folder(self) -> Iterator[tuple[str, list[str]]]:
        rest = dict(self.files)
        self.passed = Passed()
        for top in self.folders:
            empty = True
            for folder, names in self._walked(top):
                names = sorted({*names, *rest.pop(os.path.realpath(folder), ())})
                if names:
                    empty = False
                    yield folder, names
            if empty:
                why = f" ({self.passed})" if str(self.passed) else ""
                raise UserError(f"no images at {top}{why}: give files, folders of images, or globs")
        yield from ((folder, sorted(names)) for folder, names in sorted(rest.items()))

    def _walked(self, top: str) -> Iterator[tuple[str, list[str]]]:
        """Every folder from `top` down, sorted, with the names of the images in it."""
        if top == str(self.leave_out):
            return
        for folder, names in walk(Path(top), self._is_left_out, self.passed.unreadable):
            found = {name for name in names if is_image(folder, name)}
            for path in (os.path.join(folder, name) for name in names if name not in found):
                if os.path.islink(path) and not os.path.exists(path):
                    self.passed.note("link that leads nowhere", path)
            yield folder, list(found)

    def _is_left_out(self, folder: str) -> bool:
        """Whether a folder has results, or is reached by a link although it is listed anyway."""
        real = os.path.realpath(folder)
        if self.leave_out is not None and real == str(self.leave_out):
            return True
        if is_marked(folder):
            self.passed.note("folder of results", folder)
            return True
        if real == folder:
            return False
        if any(below(real, top) for top in self.folders) or real in self.passed.linked:
            return True
        self.passed.linked.add(real)
        return False

    def counted(self) -> tuple[int, int]:
        """(number of images, checksum of their names). Raises UserError for a folder without any."""
        number, sum = 0, 0
        for folder, names in self._by_folder():
            number, sum = number + len(names), zlib.crc32(os.fsencode(folder), sum)
            for name in names:
                sum = zlib.crc32(os.fsencode(name), sum)
        return number, sum


class Passed:
    """What a walk through all folders has skipped."""

    def __init__(self) -> None:
        self.linked: set[str] = set()
        """Folders that were listed through a link."""
        self.kinds: dict[str, tuple[int, str]] = {}
        """Kind -> number, and the first one's path."""

    def note(self, kind: str, path: str) -> None:
        number, first = self.kinds.get(kind, (0, path))
        self.kinds[kind] = number + 1, first

    def unreadable(self, error: OSError) -> None:
        self.note("folder that cannot be read", str(error.filename))

    def __str__(self) -> str:
        """ "" if there is nothing to say."""
        said = [
            f"{number} × {kind} ({first}{', …' if number > 1 else ''})"
            for kind, (number, first) in self.kinds.items()
        ]
        return f"left out: {', '.join(said)}" if said else ""


def is_image(folder: str, name: str) -> bool:
    return os.path.splitext(name)[1].lower() in ENDINGS and os.path.isfile(os.path.join(folder, name))


def matches(pattern: str) -> Iterable[str]:
    return [path for path in glob.iglob(pattern, recursive=True) if os.path.isfile(path)]


def below(path: str, top: str) -> bool:
    return os.path.commonpath([path, top]) == top
