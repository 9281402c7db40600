"""What one start of a rank knows: its run, its place among the ranks, its device, how it reports."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from jobs import events
from jobs.run_directory import Request, Run


@dataclass
class Session:
    run: Run
    request: Request
    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    start: int
    """Number of this start of the run, 1, 2, …; a later start fences off the earlier ones."""
    job: str | None
    began: float = field(default_factory=time.time)
    """When the process began, seconds since 1970."""
    device: str = "cpu"
    control: Any = None
    """A gloo process group for what the ranks agree on; None with one rank."""
    store: Any = None
    """The TCPStore of the ranks; None with one rank."""
    _unwritten: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    _writing: Any = field(default_factory=threading.Lock)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def report(self, event: str, **fields: Any) -> None:
        """Appends an event. A full disk must not end a training: the event is then written with the next."""
        with self._writing:
            self._unwritten.append((event, fields))
            try:
                while self._unwritten:
                    name, values = self._unwritten[0]
                    events.append(
                        self.run.events, name, stage="train", job=self.job, start=self.start, **values
                    )
                    self._unwritten.pop(0)
            except OSError as error:
                print(f"event {event} {fields} waits to be written: {error}", file=sys.stderr, flush=True)


class Forgiving:
    """Standard output or error, whose writes do not raise: a log on a full disk must not end a training."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def from_environment(run: Run) -> Session:
    """The session that the supervisor (jobs/train/supervise.py) describes in environment variables."""
    env = os.environ
    return Session(
        run=run,
        request=run.request(),
        rank=int(env.get("RANK", 0)),
        ranks=int(env.get("WORLD_SIZE", 1)),
        local_rank=int(env.get("LOCAL_RANK", 0)),
        local_ranks=int(env.get("LOCAL_WORLD_SIZE", env.get("WORLD_SIZE", 1))),
        start=int(env.get("BATON_START", 1)),
        job=env.get("BATON_JOB"),
    )
