"""Tells the supervisor that this rank is alive and what it is doing: JSON lines on BATON_HEARTBEAT_FD."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

from jobs.run.errors import MALFORMED

INTERVAL = 0.5
"""Minimum seconds between two beats of the same phase."""
_told: int | None = None
"""The descriptor of this process's Heartbeat, which forked data loader workers have, too."""
_held: Beat | None = None
"""This process's last beat, if it came too soon after the previous one to be sent."""


class Beat(NamedTuple):
    phase: str
    step: int | None
    at: float
    """time.monotonic(), which the whole machine shares."""


class Reads(NamedTuple):
    path: str
    """The path of a packed dataset's container that the worker has opened."""


def read(line: bytes, now: float) -> Beat | Reads | None:
    """Parses a line from a worker, which may be any program: a sign of life, or what it reads; else None."""
    try:
        said = json.loads(line)
        if (path := said.get("reads")) is not None:
            return None if b"\0" in os.fsencode(path) else Reads(path)
        beat = Beat(str(said["phase"]), said.get("step"), float(said.get("at", now)))
    except MALFORMED:
        return None
    numbered = beat.step is None or (type(beat.step) is int and abs(beat.step) < 1 << 63)
    return beat if numbered and math.isfinite(beat.at) else None


class Heartbeat:
    def __init__(self) -> None:
        fd = os.environ.get("BATON_HEARTBEAT_FD")
        self.fd = int(fd) if fd else None
        self.phase, self.time = "", 0.0
        if self.fd is not None:
            # A supervisor that does not read must not stop the training.
            os.set_blocking(self.fd, False)
            os.set_inheritable(self.fd, False)
        global _told
        _told = self.fd

    def beat(self, phase: str, step: int) -> None:
        """`phase`: start, train, validate, save or end."""
        if self.fd is None:
            return
        global _held
        now = time.monotonic()
        _held = Beat(phase, step, now)
        if phase != self.phase or now - self.time >= INTERVAL:
            self.phase, self.time = phase, now
            tell_held()


def tell_held() -> None:
    """Sends the last beat if it has not been sent yet, so that the exact step of an error is known."""
    global _held
    if _told is not None and _held is not None:
        # On the machine's clock: a reader that was suspended meanwhile can tell when it was written.
        _write(_told, json.dumps(_held._asdict() | {"at": round(_held.at, 3)}) + "\n")
    _held = None


def tell_reads(container: Path) -> None:
    """Tells the supervisor, if there is one, that this rank reads from a packed dataset."""
    if _told is not None:
        _write(_told, json.dumps({"reads": str(container)}) + "\n")


def _write(fd: int, line: str) -> None:
    # A full pipe, or a supervisor that is gone: nobody is listening, which is not this rank's concern.
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(fd, line.encode())
