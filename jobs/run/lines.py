"""Files of lines that several processes append to, on one machine or several."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

from jobs.run.directory import write_atomically

_HALF = re.compile("[\ud800-\udfff]")
TURN_SECONDS = 5.0
"""Who may write the file may hold its lock; nobody's lines wait longer for that."""


def line_of(record: dict[str, Any]) -> str:
    """A record as JSON that every reader takes: JSON knows no NaN and no infinity, which become null, and no
    half of a character (Python's for a byte of a file's name that is no text), which becomes an escape."""
    try:
        line = json.dumps(record, separators=(",", ":"), default=str, allow_nan=False)
    except ValueError:
        line = json.dumps(_finite(record), separators=(",", ":"), default=str, allow_nan=False)
    if "\\ud" in line:
        text = json.dumps(json.loads(line), separators=(",", ":"), ensure_ascii=False)
        line = _HALF.sub(lambda half: "\\" + ascii(half[0])[1:-1], text)
    return line


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
    lines = Lines(path)
    try:
        lines.append(line)
    finally:
        lines.close()


class _KeptOpen:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd: int | None = None

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class Lines(_KeptOpen):
    """A file of lines that is kept open, for whoever appends to it again and again: a file server is asked
    for it once."""

    def append(self, line: str) -> None:
        """As `append_line`. Whether the last line is torn is looked at when the file is opened, which is when
        the line before could not be written, too."""
        data = line.encode() + b"\n"
        opened = self.fd is None
        if self.fd is None:
            self.fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _take_turn(self.fd)
            if opened:
                size = os.fstat(self.fd).st_size
                if size and os.pread(self.fd, 1, size - 1) != b"\n":
                    data = b"\n" + data
            if os.write(self.fd, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            with contextlib.suppress(OSError):  # a file system without locks has given none
                fcntl.lockf(self.fd, fcntl.LOCK_UN)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                error.filename = str(self.path)
            raise


class Board(_KeptOpen):
    """A file that always shows the newest of what one process has to say. It is put in place whole, and then
    written over in one `write` of the same length, which asks a file server for no name: a reader sees the
    old or the new, and has to live with a mixture."""

    SIZE = 2048
    """Bytes, filled up with spaces."""

    def show(self, content: bytes) -> None:
        """Raises OSError; then the next one puts a new file in place."""
        padded = content.ljust(self.SIZE)
        if self.fd is None or len(padded) > self.SIZE:
            self.close()
            write_atomically(self.path, padded)
            if len(padded) == self.SIZE:
                self.fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            return
        try:
            if os.pwrite(self.fd, padded, 0) < self.SIZE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fdatasync(self.fd)  # to the server, where readers look
        except BaseException:
            self.close()
            raise
