"""Checks whether folders have images, for both launcher and job."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ENDINGS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".geotiff", ".bmp", ".dib", ".webp"),
    *(".ppm", ".pgm", ".pnm", ".gif", ".jp2", ".j2k", ".tga"),
}
"""Of what is an image in a folder: all that a preparation takes (jobs/prepare/own/images.py). One that the
config's own step cannot read is told as such."""


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
    """Whether any file below a folder has this suffix; stops at the first."""
    return any(path.is_file() for path in folder.rglob(f"*{suffix}"))


def wrong_list(names: Path, folder: Path, suffix: str) -> str:
    """What is wrong with a list of images as read by BaseSegDataset (one name per line, without suffix); ""
    if nothing is. Checks only for the first image."""
    try:
        lines = names.read_bytes().decode().split("\n")
    except FileNotFoundError:
        return f"the dataset's list of images, {names}, is not there"
    except UnicodeDecodeError:
        return f"the dataset's list of images, {names}, is not a text in UTF-8"
    except OSError as error:
        return f"the dataset's list of images, {names}, cannot be read: {error.strerror}"
    if lines[0].startswith("\ufeff"):
        return (
            f"{names} begins with a byte order mark (BOM), which would become part of the first image's "
            "name: save it as UTF-8 without BOM"
        )
    found = [line.strip() for line in lines]
    if not found[-1]:  # behind the last line's end
        found.pop()
    if not any(found):
        return f"the dataset has no images: {names} names none"
    if "" in found:
        return f"line {found.index('') + 1} of {names} is empty: every line of a list has to name an image"
    if not folder.is_dir():
        return nothing_there(folder, suffix)
    first = folder / f"{found[0]}{suffix}"
    if first.is_file():
        return ""
    if (folder / found[0]).is_file():
        return (
            f"{names} names {found[0]!r}: it has to be without the suffix ({suffix!r}, img_suffix, is added)"
        )
    same = sorted(one.name for one in first.parent.glob("*") if one.stem == Path(found[0]).name)
    hint = f"; there is {same[0]}: set img_suffix in the config's datasets" if same else ""
    return f"{names} names {found[0]!r}, and there is no {first}{hint}"


def is_hidden(folder: str) -> bool:
    return os.path.basename(folder).startswith(".")


def walk(
    folder: Path,
    leave_out: Callable[[str], bool] = is_hidden,
    unreadable: Callable[[OSError], object] | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of files in it) for all folders below one, including links, except those to be left out.
    Links to a folder that contains them are not followed, since that would never end."""
    for at, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        above = Path(os.path.realpath(at))
        folders[:] = [
            one
            for one in sorted(folders)
            if not leave_out(path := os.path.join(at, one))
            and not (os.path.islink(path) and above.is_relative_to(os.path.realpath(path)))
        ]
        yield at, names
