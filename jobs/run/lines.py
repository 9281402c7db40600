"""Files of lines that several processes append to, on one machine or several."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import time
from pathlib import Path
from typing import Any

TURN_SECONDS = 5.0
"""Who may write the file may hold its lock; nobody's lines wait longer for that."""


def line_of(record: dict[str, Any]) -> str:
    """A record as JSON that every reader takes: JSON knows no NaN and no infinity, which become null."""
    try:
        return json.dumps(record, separators=(",", ":"), default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(record), separators=(",", ":"), default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value


def _take_turn(fd: int) -> None:
    """A lock on the open file until it is closed. An NFS client works out by itself where a file ends, so
    lines of two nodes could come to lie over each other; having got a lock it asks the server anew (nfs(5),
    "Using file locks with NFS"). Where there are no locks, or none within TURN_SECONDS, the line is written
    without."""
    give_up = time.monotonic() + TURN_SECONDS
    while True:
        try:
            return fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if time.monotonic() > give_up:
                return None
        except OSError:  # ENOLCK, ENOSYS: a file system without
            return None
        time.sleep(0.005)


def append_line(path: Path, line: str) -> None:
    """Appends a line to a file of lines, in one `write`, so that lines of several processes do not mix.

    If the last line is torn, a newline first keeps the new one readable. Raises OSError; what has been
    written by then stays behind as a torn one.
    """
    data = line.encode() + b"\n"
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        _take_turn(fd)
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            data = b"\n" + data
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(fd)
