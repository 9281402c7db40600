"""How many bytes and files a user may still write somewhere: what the file system has left, and the user's
quota there, as `quota` (quota(1)) or `lfs quota` (Lustre's lfs-quota(1)) tells it."""

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
"""How long a quota may take to be told."""
COLUMNS = 9
"""Of both programs: file system; KiB used, quota, limit, grace; files used, quota, limit, grace."""


class Left(NamedTuple):
    """None: without a limit, or nobody tells."""

    bytes: int | None = None
    files: int | None = None


def left(path: Path) -> Left:
    """What may still be written at a path that is there, by whichever limit is nearest."""
    status = os.statvfs(path)
    free = Left(status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None)
    return nearest([free, of_user(path)])


def of_user(path: Path) -> Left:
    """What the user's quota leaves there, by the program that knows."""
    who = str(os.geteuid())
    if file_systems.kind(path) == "lustre":
        return of_text(_said(["lfs", "quota", "-q", "-u", who, str(path)]), None)
    # -w: a line for each file system, -p: a grace time in seconds, so that there are always as many columns
    return of_text(_said(["quota", "-u", "-w", "-p", who]), file_systems.source(path))


def of_text(text: str, source: str | None) -> Left:
    """The quotas of one file system in what a program said; of all of them if `source` is None."""
    found = []
    # lfs breaks the line behind a long name; a limit that is passed is marked by a star, one that is not
    # exact by brackets.
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
    """The smallest of each kind."""
    known = list(limits)
    sizes = [one.bytes for one in known if one.bytes is not None]
    counts = [one.files for one in known if one.files is not None]
    return Left(min(sizes, default=None), min(counts, default=None))


def _said(command: list[str]) -> str:
    """What a program says; "" where there is none, or where it does not answer. One that tells of a quota
    that is passed ends with 1, and is right all the same."""
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
