"""Files of lines to which several processes append, on one machine or several."""

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
"""The longest that a line waits for the lock, which anybody who may write the file can hold."""


def line_of(record: dict[str, Any]) -> str:
    """A record as JSON that every parser accepts: NaN and infinity become null, and lone surrogates (Python's
    stand-in for undecodable bytes in file names) become escape sequences."""
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
    """Locks the open file until it is closed. An NFS client caches where a file ends, so lines of two nodes
    could overwrite each other; on getting a lock it asks the server again (nfs(5), "Using file locks with
    NFS"). Without locks, or if none is free within TURN_SECONDS, the line is written unlocked."""
    give_up = time.monotonic() + TURN_SECONDS
    while True:
        try:
            return fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if time.monotonic() > give_up:
                return None
        except OSError:  # ENOLCK, ENOSYS: a file system without locks
            return None
        time.sleep(0.005)


def append_line(path: Path, line: str) -> None:
    """Appends a line to a file in one `write`, so that lines of several processes do not mix.

    If the last line is torn, a newline before the new one keeps that readable. Raises OSError; what has been
    written by then remains as a torn line.
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
    """A file of lines that is kept open for repeated appending, so that the file server is asked for it only
    once."""

    def append(self, line: str) -> None:
        """As `append_line`. Checks for a torn last line only on opening the file, which it also does after a
        line that could not be written."""
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
            with contextlib.suppress(OSError):  # there is none on a file system without locks
                fcntl.lockf(self.fd, fcntl.LOCK_UN)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                error.filename = str(self.path)
            raise


class Board(_KeptOpen):
    """A file that always shows the latest message of one process. It is created atomically and then
    overwritten in one `write` of the same length, which needs no file name lookup on a server: a reader sees
    the old or the new content, and has to cope with a mixture."""

    SIZE = 2048
    """Size in bytes, padded with spaces."""

    def show(self, content: bytes) -> None:
        """Shows `content`. Raises OSError, after which the next call creates a new file."""
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
