"""What of a folder of the user's is code, and what is data that lies beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CODE = (".py", ".pyi", ".pyx", ".so", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp")
ENVIRONMENT = ("pyvenv.cfg", "conda-meta")
"""What lies in a folder that is an environment of Python's."""
FEW = 100
SMALL = 10 << 20
"""Files, and bytes of them together, up to which a folder without code is no data; bytes of one such file."""


def entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """The folders and files of a folder; none that is hidden, no caches, no environments of Python's, and
    nothing that is neither (a FIFO, a link to nothing)."""
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
    """Whether there is no code in a folder and those below it, but more than a few small files."""
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
    """Whether a file is data by itself, as a checkpoint is."""
    return not file.name.endswith(CODE) and file.stat().st_size > SMALL


def python(module: Path) -> list[Path]:
    """The Python files of a module: a file, or a package's folder."""
    if not module.is_dir():
        return [module]
    found: list[Path] = []
    rest: list[str | Path] = [module]
    while rest:
        for entry in entries(rest.pop()):
            if entry.is_dir(follow_symlinks=False):
                rest.append(entry.path)
            elif entry.name.endswith(".py"):
                found.append(Path(entry.path))
    return sorted(found)
