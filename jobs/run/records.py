"""Reads a run's JSON files, even while they are being written: torn lines are skipped, a missing file counts
as empty."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import msgspec

from jobs.run.events import seconds_of

_decode_strictly = msgspec.json.Decoder().decode
_decode_lines = msgspec.json.Decoder().decode_lines


def _decode(text: bytes) -> Any:
    """A JSON value, even with NaN or Infinity, which Python's json writes and msgspec refuses.

    Raises ValueError (msgspec.DecodeError is one).
    """
    try:
        return _decode_strictly(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_leniently(text)


def _decode_leniently(text: bytes) -> Any:
    """Raises ValueError, also for JSON that is nested too deeply or has lone surrogates."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def number(value: Any) -> float | int | None:
    """`value` if it is a finite number, else None."""
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if right else None


class Mark(msgspec.Struct, gc=False):
    """An event as first read, with the fields of the frequent kinds. Other kinds are decoded again."""

    time: str
    event: str
    stage: str = "train"
    start: int | None = None
    step: int | None = None
    epoch: int | None = None
    seconds: float | None = None
    stall_seconds: float | None = None
    bytes: int | None = None


_decode_marks = msgspec.json.Decoder(Mark).decode_lines


_decode_mark_strictly = msgspec.json.Decoder(Mark).decode


def _decode_mark(line: bytes) -> Mark:
    """Raises ValueError."""
    try:
        return _decode_mark_strictly(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.convert(_decode_leniently(line), Mark)


def content(path: Path) -> bytes:
    """A file's content. Raises OSError, also if it is not a regular file: reading a pipe would block."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is no file", str(path))
        return file.read()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All complete JSON objects of a file of lines; torn or damaged lines are skipped."""
    try:
        text = content(path)
    except FileNotFoundError:
        return []
    try:
        records = _decode_lines(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        records = []
        for line in text.splitlines():
            try:
                records.append(_decode(line))
            except ValueError:
                continue
    return [record for record in records if isinstance(record, dict)]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; {} if the file is missing or damaged. Raises OSError otherwise."""
    try:
        value = _decode(content(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_events(path: Path) -> list[tuple[Mark, bytes]]:
    """Every complete event of a file, and its line; torn and foreign lines are skipped. Raises OSError."""
    try:
        text = content(path)
    except FileNotFoundError:
        return []
    lines = [line for line in text.split(b"\n") if line]
    try:
        return list(zip(_decode_marks(text), lines, strict=True))
    except (msgspec.DecodeError, ValueError, RecursionError):
        found = []
        for line in lines:
            try:
                found.append((_decode_mark(line), line))
            except ValueError:
                continue
        return found


class Clock:
    """Converts an event's time to seconds, faster than `seconds_of`: each day is computed only once."""

    def __init__(self) -> None:
        self.days: dict[str, float] = {}

    def __call__(self, text: str) -> float:
        day = self.days.get(text[:10])
        if day is None:
            day = self.days[text[:10]] = seconds_of(text[:10] + "T00:00:00Z")
        if text[-1] != "Z":
            return seconds_of(text)
        return day + int(text[11:13]) * 3600 + int(text[14:16]) * 60 + float(text[17:-1])
