"""What was written, brought to the disk: a power cut must not leave a marker without its data."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL = 1.0
"""Seconds between two rounds of writing to the disk while files are made."""


def sync(folder: Path) -> None:
    """The file system of `folder`, whole. Raises OSError for what could not be written."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd):
            raise OSError(ctypes.get_errno(), "syncfs failed", str(folder))
    finally:
        os.close(fd)


@contextmanager
def writing_behind(folder: Path) -> Iterator[None]:
    """Has the disk take what the body writes meanwhile, so that the last `sync` finds little to wait for."""
    over = threading.Event()
    failed: list[OSError] = []

    def write() -> None:
        try:
            while not over.wait(INTERVAL):
                sync(folder)
        except OSError as error:
            failed.append(error)

    # A daemon: whoever is told to leave does not wait for the disk.
    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
    thread.join()
    if failed:  # the kernel reports a failed write once, so a later sync would not see it
        raise failed[0]
