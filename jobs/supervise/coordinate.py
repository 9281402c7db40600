"""What rank 0's supervisor decides for all ranks: which failed first, which hangs, when it is over.

No sockets or processes here: reports come in through `handle`, `lost` and `tick`, orders and events go out
through two functions, and time is an argument. supervisor.py connects it to the world.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jobs.run import exit_codes
from jobs.run.errors import without_places
from jobs.supervise import budget

# The error of a rank whose peer has died. If the peer's own follows within SETTLE_SECONDS, that is the cause.
LOST_PEER = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|gloo|nccl|DistBackendError|DistNetworkError"
    r"|ProcessGroup|TCPStore|socket|remote process exited",
    re.IGNORECASE,
)
SETTLE_SECONDS = 2.0
DUMP_SECONDS = 10.0
KILL_SECONDS = 30.0
SHORTEST_SUSPENSION = 1.0
"""Seconds by which ranks' reports of one suspension may differ: it is recorded once."""
SILENT_SECONDS = 60.0
"""A supervisor that is silent for so long is lost (they all send a sign of life every few seconds)."""
PATIENCE = {"start": 3.0, "validate": 3.0, "save": 3.0, "end": 3.0}
"""Multiples of the hang limit that a phase may take without a sign of life from the worker."""

Order = Callable[[dict[str, Any]], None]
"""Sends an order to all supervisors, including rank 0's own."""
Write = Callable[..., Any]
"""Appends an event: name, then fields."""


@dataclass
class Rank:
    host: str
    heard: float
    """When its supervisor was last heard from."""
    beat: float
    """When its worker last showed a sign of progress."""
    phase: str | None = None
    step: int | None = None
    exit: dict[str, Any] | None = None
    dumped: bool = False


@dataclass
class Coordinator:
    ranks: list[Rank]
    order: Order
    write: Write
    hang_seconds: float
    last_checkpoint: tuple[int, int] = (0, 0)
    """(step, epoch) from which the next start will resume if nothing more is saved."""
    stacks: str = ""
    """Where the ranks dump their stacks; for the event."""

    code: int | None = None
    """The exit code for all ranks, once it is decided and all workers have ended."""
    state: str = "running"
    """running, settling (a failure was seen, its cause may follow), dumping (hang) or killing."""
    since: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)
    signals: set[str] = field(default_factory=set)
    leaving: bool = False
    superseded: int | None = None
    """Number of the later start that has fenced this one off."""
    last_tick: float | None = None
    suspended_until: float = 0.0
    """The end of the last suspension that was reported."""

    # Reports

    def handle(self, number: int, message: dict[str, Any], now: float) -> None:
        """Handles a message from rank `number`'s supervisor."""
        rank = self.ranks[number]
        rank.heard = now
        if "phase" in message:
            rank.beat, rank.phase = now, message["phase"]
            rank.step = message.get("step", rank.step)
        elif "signal" in message:
            self._signalled(number, message["signal"], now)
        elif "suspended" in message:
            self._suspended(number, message["suspended"], now)
        elif "copy" in message:
            event = message["copy"]["event"]
            fields = {key: value for key, value in message["copy"].items() if key != "event"}
            self.write(event, host=rank.host, **fields)
        elif "dumped" in message:
            rank.dumped = True
        elif "exit" in message and rank.exit is None:
            rank.exit = message["exit"]
            rank.step = message["exit"].get("step", rank.step)
            if rank.exit["code"] == exit_codes.SUPERSEDED:
                # A rank's own failure no longer matters, nor do the consequences for the others.
                self.superseded = int(rank.exit["by"])
                self._kill(now)
            elif rank.exit["code"] not in (exit_codes.FINISHED, exit_codes.RESUME):
                self._failed(number, rank.exit, now)

    def lost(self, number: int, why: str, now: float) -> None:
        """Rank `number`'s supervisor has exited without having been told to."""
        rank = self.ranks[number]
        if rank.exit is None:
            rank.exit = {"code": exit_codes.FAILED, "error": why}
            # Its worker dies with it (PR_SET_PDEATHSIG). This is unexpected even after an order to kill.
            self._failed(number, rank.exit, now, expected=False)

    def tick(self, now: float) -> None:
        """Handles whatever depends on time alone. To be called at least every second or two."""
        self._forgive_suspension(now)
        if self.code is not None:
            return
        for number, rank in enumerate(self.ranks):
            if number and rank.exit is None and now - rank.heard > SILENT_SECONDS:
                self.lost(number, f"its supervisor was not heard of for {SILENT_SECONDS:.0f} s", now)
        if self.state == "running":
            self._look_for_hang(now)
        waited = now - self.since
        if self.state == "settling" and waited > SETTLE_SECONDS:
            self._kill(now)
        if self.state == "dumping":
            open_ranks = [rank for rank in self.ranks if rank.exit is None and not rank.dumped]
            if not open_ranks or waited > DUMP_SECONDS:
                self._kill(now)
        if self.state == "killing" and waited > KILL_SECONDS:
            for number, rank in enumerate(self.ranks):
                if rank.exit is None:
                    rank.exit = {"code": exit_codes.FAILED, "error": "could not be killed"}
                    # Perhaps its node is lost, which the others noticed first.
                    self._failed(number, rank.exit, now, expected=self.leaving)
        if all(rank.exit is not None for rank in self.ranks):
            self._conclude()

    # Decisions

    def _signalled(self, number: int, name: str, now: float) -> None:
        if name not in self.signals:
            self.signals.add(name)
            self.write("signal", signal=name, rank=number, host=self.ranks[number].host)
        at_start = all(rank.phase in (None, "start") and rank.exit is None for rank in self.ranks)
        if self.state == "running" and at_start:
            # There is no step to be saved yet: do not wait for the workers to start up.
            self.leaving = True
            step, epoch = self.last_checkpoint
            self.write("preempted", step=step, epoch=epoch)
            self._kill(now)

    def _failed(self, number: int, end: dict[str, Any], now: float, expected: bool | None = None) -> None:
        killed_by_us = self.state == "killing" if expected is None else expected
        if killed_by_us:
            return
        self.failures.append({"rank": number, "host": self.ranks[number].host, **end})
        if self.state == "running":
            self.state, self.since = "settling", now
        if self.state == "settling" and not _echo(end):
            self._kill(now)

    def _look_for_hang(self, now: float) -> None:
        running = [number for number, rank in enumerate(self.ranks) if rank.exit is None]
        if not running:
            return
        # One rank may save or validate while the others wait for it: the longest patience counts for all.
        limit = self.hang_seconds * max(PATIENCE.get(self.ranks[n].phase or "start", 1.0) for n in running)
        stuck = [number for number in running if now - self.ranks[number].beat > limit]
        if not stuck:
            return
        # The ranks wait for each other: the one that is behind blocks the others.
        silent = min(stuck, key=lambda number: (self.ranks[number].step or 0, self.ranks[number].beat))
        seconds = now - self.ranks[silent].beat
        phase = self.ranks[silent].phase or "start"
        self.write("hang", seconds=round(seconds, 1), stacks=self.stacks, rank=silent)
        error = f"no progress for {seconds:.0f} s in phase {phase}; stacks of all ranks: {self.stacks}"
        self.failures.append(
            {"rank": silent, "host": self.ranks[silent].host, "code": exit_codes.FAILED, "error": error}
        )
        self.state, self.since = "dumping", now
        self.order({"do": "dump"})

    def _kill(self, now: float) -> None:
        self.state, self.since = "killing", now
        self.order({"do": "kill"})

    def _conclude(self) -> None:
        codes = {rank.exit["code"] for rank in self.ranks if rank.exit is not None}
        if self.superseded is not None:
            self.write("superseded", by=self.superseded)
            self.code = exit_codes.SUPERSEDED
        elif self.failures:
            # min is stable: among equals, the first reported.
            first = min(self.failures, key=_echo)
            number, host = first["rank"], first["host"]
            # Its own step: how far the others had got when it failed varies.
            step = first.get("step")
            if step is None:
                step = max((rank.step for rank in self.ranks if rank.step is not None), default=None)
            self.write(
                "failed",
                reason=f"rank {number} on {host}: {first.get('error')}",
                rank=number,
                host=host,
                error=first.get("error"),
                exit_code=first.get("code"),
                log=first.get("log"),
                step=step,
            )
            user = first["code"] == exit_codes.USER_ERROR
            self.code = exit_codes.USER_ERROR if user else exit_codes.FAILED
        elif self.leaving or exit_codes.RESUME in codes:
            self.code = exit_codes.RESUME
        else:
            self.code = exit_codes.FINISHED

    def _suspended(self, number: int, seconds: float, now: float) -> None:
        """Rank `number` was suspended for the last `seconds`; the others were, too, or waited for it."""
        new = now - max(now - seconds, self.suspended_until)
        if new > SHORTEST_SUSPENSION:
            self.suspended_until = now
            self.write("suspended", seconds=round(new, 1), rank=number, host=self.ranks[number].host)
            for rank in self.ranks:
                rank.beat = min(now, rank.beat + new)

    def _forgive_suspension(self, now: float) -> None:
        """Sets the clocks forward after a suspension of the whole job (SIGSTOP), which is not a hang."""
        gap = now - self.last_tick if self.last_tick is not None else 0.0
        self.last_tick = now
        if gap > 10.0:
            self.since += gap
            for rank in self.ranks:
                rank.beat = min(now, rank.beat + gap)
                rank.heard = min(now, rank.heard + gap)


def _echo(end: dict[str, Any]) -> int:
    """How much this failure looks like a consequence of another rank's: 0 not at all, 2 certainly.

    1: SIGABRT, which NCCL's watchdog raises in a healthy rank whose peer is gone, but also native code in a
    rank that fails itself, whose peers then report a lost connection.
    """
    error = str(end.get("error") or "")
    if budget.DATA.search(error):
        return 0
    if end.get("signal"):
        return 1 if end["signal"] == "SIGABRT" else 0
    return 2 if LOST_PEER.search(without_places(error)) else 0
