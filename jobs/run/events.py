"""`events.jsonl`: what happened to a run, one JSON object per line, appended by launchers and jobs.

Every line has `time` (UTC, RFC 3339, milliseconds), `event` and, if a job wrote it, `stage` (prepare, train,
evaluate, infer, export), `job` (the job id; 12_3 for an array element) and, in a training, `start`: the
1-based number of this start of the run, which also counts successor jobs (SLURM_RESTART_COUNT, the field
`restart` of `started`, begins anew with those). kinds.py defines the events.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from jobs.run.kinds import COMMON, EVENTS, Event
from jobs.run.lines import append_line, line_of


class EventError(ValueError):
    """An event that is not in the schema, or that has missing or unknown fields."""


def check(record: dict[str, Any]) -> None:
    """Raises EventError, saying which field of which event, if `record` breaks the schema."""
    name = record.get("event")
    if name not in EVENTS:
        raise EventError(f"unknown event {name!r}")
    required, optional = EVENTS[name]
    fields = set(record) - COMMON
    if missing := required - fields:
        raise EventError(f"event {name!r} lacks {', '.join(sorted(missing))}")
    if unknown := fields - required - optional:
        raise EventError(f"event {name!r} has unknown fields {', '.join(sorted(unknown))}")


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_of(text: str) -> float:
    """Seconds since the epoch of an event's `time`."""
    # Python 3.10's fromisoformat does not accept Z.
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def append(path: Path, event: str, /, **fields: Any) -> dict[str, Any]:
    """Appends one event to the file `path`; fields that are None are left out. Returns the record.

    Raises EventError for an event outside the schema, OSError as `open` and `write` do.
    """
    record = _record(event, fields)
    append_line(path, line_of(record))
    return record


class Writer:
    """Appends the events of a process that a full disk must not end: an event that cannot be written is kept,
    and written in order with the next one or by `flush`. Its time is when it happened.

    Thread-safe. `common`: fields of every event, such as stage, job and start.
    """

    def __init__(self, path: Path, **common: Any) -> None:
        self.path, self.common = path, common
        self.waiting: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def append(self, event: str, /, **fields: Any) -> None:
        """Like this module's `append`, but never raises OSError."""
        with self._lock:
            self.waiting.append(_record(event, self.common | fields))
            if error := self._write():
                with contextlib.suppress(OSError):  # the log may be on the same disk
                    print(f"{event} waits to be written: {error}", file=sys.stderr, flush=True)

    def flush(self, seconds: float = 0.0) -> bool:
        """Tries to write what is pending, once or for that many seconds. Returns whether all is written."""
        deadline = time.monotonic() + seconds
        while self.waiting:
            with self._lock:
                error = self._write()
            if error is None or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        return not self.waiting

    def _write(self) -> OSError | None:
        try:
            while self.waiting:
                append_line(self.path, line_of(self.waiting[0]))
                self.waiting.pop(0)
        except OSError as error:
            return error
        return None


def _record(event: str, fields: dict[str, Any]) -> dict[str, Any]:
    record = {"time": now(), "event": event} | {k: v for k, v in fields.items() if v is not None}
    check(record)
    return record


def read(path: Path) -> list[dict[str, Any]]:
    """All events of a file in the order written; [] if there is no file. Torn lines are skipped."""
    return list(iterate(path))


def iterate(path: Path) -> Iterator[dict[str, Any]]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and "event" in record:
                yield record


_decode_line = msgspec.json.Decoder(Event).decode


def of_line(line: bytes) -> Event | None:
    """The event of a line; None if the line is torn, the event unknown to this version, or a field missing or
    of the wrong type."""
    try:
        return _decode_line(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    try:  # it may have a NaN, which Python's json writes and msgspec refuses
        event: Event = msgspec.convert(json.loads(line), Event)
        return event
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
