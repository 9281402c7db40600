"""Tells the code in a user's folder from data that lies beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CODE = (".py", ".pyi", ".pyx", ".so", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp")
ENVIRONMENT = ("pyvenv.cfg", "conda-meta")
"""Names in a folder that mark it as a Python environment."""
FEW = 100
SMALL = 10 << 20
"""A folder without code is data if it has more files than FEW or bytes than SMALL; a file, by bytes alone."""


def entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """The folders and files in a folder, except hidden ones, caches, Python environments, and anything that
    is neither (a FIFO, a broken link)."""
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name.startswith(".") or entry.name == "__pycache__" or entry.name.endswith(".pyc"):
                continue
            if entry.is_dir():
                if not any(os.path.exists(f"{entry.path}/{name}") for name in ENVIRONMENT):
                    yield entry
            elif entry.is_file():
                yield entry


def is_data(folder: str) -> bool:
    """Whether a folder and those below it hold no code, but more than a few small files."""
    count = size = 0
    rest = [folder]
    while rest:
        for entry in entries(rest.pop()):
            if entry.is_dir(follow_symlinks=False):
                rest.append(entry.path)
            elif entry.name.endswith(CODE):
                return False
            else:
                count += 1
                size += entry.stat().st_size if count <= FEW and not entry.is_dir() else 0
    return count > FEW or size > SMALL


def is_large(file: os.DirEntry[str]) -> bool:
    """Whether a file alone counts as data, such as a checkpoint."""
    return not file.name.endswith(CODE) and file.stat().st_size > SMALL


def python(module: Path) -> list[Path]:
    """The Python files of a module: a file, or a package's folder."""
    return files(module, ".py") if module.is_dir() else [module]


def files(folder: Path, suffix: str = "") -> list[Path]:
    """The files with that suffix in a folder and those below it, except linked ones."""
    found: list[Path] = []
    rest: list[str | Path] = [folder]
    while rest:
        for entry in entries(rest.pop()):
            if entry.is_dir(follow_symlinks=False):
                rest.append(entry.path)
            elif entry.name.endswith(suffix) and not entry.is_dir():
                found.append(Path(entry.path))
    return sorted(found)
