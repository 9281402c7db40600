"""Syncs what was written to the disk: a power cut must not leave a marker without its data."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL = 1.0
"""Seconds between syncs while files are being written."""


def sync(folder: Path) -> None:
    """Syncs the whole file system of `folder`. Raises OSError for what could not be written."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd):
            raise OSError(ctypes.get_errno(), "syncfs failed", str(folder))
    finally:
        os.close(fd)


@contextmanager
def writing_behind(folder: Path) -> Iterator[None]:
    """Syncs in the background while the body writes, so that the final `sync` has little left to do."""
    over = threading.Event()
    failed: list[OSError] = []

    def write() -> None:
        try:
            while not over.wait(INTERVAL):
                sync(folder)
        except OSError as error:
            failed.append(error)

    # A daemon thread: a process that is told to exit does not wait for the disk.
    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
    thread.join()
    if failed:  # the kernel reports a failed write only once, so a later sync would not see it
        raise failed[0]
