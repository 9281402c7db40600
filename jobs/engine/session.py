"""What a rank knows in one start: its run, its place among the ranks, its device, how it reports."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from jobs.run import events, files
from jobs.run.directory import Request, Run
from jobs.run.lines import Board, Lines


@dataclass
class Session:
    run: Run
    request: Request
    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    start: int
    """The number of this start of the run, 1, 2, …; a later start fences off earlier ones."""
    job: str | None
    began: float = field(default_factory=time.time)
    """When the process started, in seconds since the epoch."""
    device: str = "cpu"
    control: Any = None
    """A gloo process group for agreements of the ranks; None with one rank."""
    store: Any = None
    """The TCPStore of the ranks; None with one rank."""

    def __post_init__(self) -> None:
        self.metrics = Lines(self.run.metrics)
        self.progress = Board(self.run.path / files.PROGRESS())
        self._events = events.Writer(self.run.events, stage="train", job=self.job, start=self.start)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def report(self, event: str, **fields: Any) -> None:
        """Appends an event. A full disk must not end a training: the event is written with the next one."""
        self._events.append(event, **fields)


def from_environment(run: Run) -> Session:
    """The session described by the supervisor (jobs/supervise/supervisor.py) in environment variables."""
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
