"""What a dataset's folder holds where it should hold images, for the launcher as for the job."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


def nothing_there(folder: Path, suffix: str) -> str:
    """Why a dataset finds no image of this suffix below this folder."""
    if not folder.is_dir():
        return f"the dataset has no images: there is no folder {folder}"
    others = Counter(path.suffix for path in folder.rglob("*") if path.is_file())
    if not others:
        return f"the dataset has no images: {folder} is empty"
    there = ", ".join(f"{count} × {name or 'no suffix'}" for name, count in others.most_common(4))
    best = others.most_common(1)[0][0]
    return (
        f"the dataset has no images: no file below {folder} ends in {suffix!r} (there are {there}): "
        f"set img_suffix={best!r} in the config's datasets"
    )


def holds(folder: Path, suffix: str) -> bool:
    """Whether any file below a folder ends so; the first one will do."""
    return any(path.is_file() for path in folder.rglob(f"*{suffix}"))


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of the files in it) of all below a folder, through links too, hidden folders left out.
    A link to a folder in which it lies is not followed: there would be no end."""
    for at, folders, names in os.walk(folder, followlinks=True):
        above = Path(os.path.realpath(at))
        folders[:] = sorted(
            one
            for one in folders
            if not one.startswith(".")
            and not (
                os.path.islink(link := os.path.join(at, one)) and above.is_relative_to(os.path.realpath(link))
            )
        )
        yield at, names
