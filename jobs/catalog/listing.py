"""What a dataset's folder holds where it should hold images, for the launcher as for the job."""

from __future__ import annotations

from collections import Counter
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
