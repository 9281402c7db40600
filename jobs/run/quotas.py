"""How many bytes and files a user may still write somewhere: what is left on the file system and of the
user's quota there, according to `quota` (quota(1)) or `lfs quota` (Lustre's lfs-quota(1))."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jobs.run import file_systems

SECONDS = 10.0
"""Seconds that the quota program may take to answer."""
COLUMNS = 9
"""Columns of both programs: file system; KiB used, quota, limit, grace; files used, quota, limit, grace."""


class Left(NamedTuple):
    """What may still be written; None if unlimited or unknown."""

    bytes: int | None = None
    files: int | None = None


def left(path: Path) -> Left:
    """What may still be written at an existing path, by whichever limit is nearest."""
    status = os.statvfs(path)
    free = Left(status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None)
    return nearest([free, of_user(path)])


def of_user(path: Path) -> Left:
    """What is left of the user's quota there, according to the program for that file system."""
    who = str(os.geteuid())
    if file_systems.kind(path) == "lustre":
        return of_text(_said(["lfs", "quota", "-q", "-u", who, str(path)]), None)
    # -w: one line per file system; -p: grace times in seconds, so that the number of columns is fixed
    return of_text(_said(["quota", "-u", "-w", "-p", who]), file_systems.source(path))


def of_text(text: str, source: str | None) -> Left:
    """What is left according to a program's output, for one file system; for all if `source` is None."""
    found = []
    # lfs breaks the line after a long name; a star marks a limit that is exceeded, brackets one that is not
    # exact.
    words = text.split() if source is None else [word for line in _lines(text, source) for word in line]
    for at in range(0, len(words) - COLUMNS + 1, COLUMNS):
        row = [re.sub(r"[*\[\]]", "", word) for word in words[at + 1 : at + COLUMNS]]
        numbers = [int(word) if word.isdigit() else 0 for word in row]
        used, soft, hard, _, files, soft_files, hard_files, _ = numbers
        most, most_files = soft or hard, soft_files or hard_files
        found.append(
            Left(
                max(0, most - used) * 1024 if most else None,
                max(0, most_files - files) if most_files else None,
            )
        )
    return nearest(found)


def _lines(text: str, source: str) -> Iterable[list[str]]:
    for line in text.splitlines():
        words = line.split()
        if len(words) == COLUMNS and words[0].rstrip("/") == source.rstrip("/"):
            yield words


def nearest(limits: Iterable[Left]) -> Left:
    """The smallest limit of each kind."""
    known = list(limits)
    sizes = [one.bytes for one in known if one.bytes is not None]
    counts = [one.files for one in known if one.files is not None]
    return Left(min(sizes, default=None), min(counts, default=None))


def _said(command: list[str]) -> str:
    """A program's output; "" if it is missing or does not answer. Its exit code is ignored: it is 1 for an
    exceeded quota."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")
