"""Sends what is settled of a run to one service, again and again until told to end.

One process for each service, so that one that hangs holds up nobody: neither the training, which knows of
none of them, nor another service. What could not be sent is sent by whoever comes next: the next start, the
evaluation, or `launch/track.py RUN`.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, TextIO

import msgspec

from jobs.run import files, records, trackers
from jobs.run.directory import Run, write_atomically
from jobs.run.errors import UserError, one_line
from launch.observe.tracking import content
from launch.observe.tracking.content import About, Content, Row

POLL = 5.0
"""Seconds between two looks at a run that goes on."""
RETRY = 60.0
"""Seconds until a service that failed is tried again."""
SAY = 5.0
"""Seconds after which a service that is still being called is named."""
ANSWERS = 75.0
"""Seconds that a service may take to answer at all, where nothing is to be tried again: ClearML would try for
ever. An evaluation waits a little longer (jobs/supervise/tracking.py)."""
TURN = 30.0
"""Seconds for which another process that sends to the same service is waited for."""


class State(msgspec.Struct, kw_only=True):
    """What is remembered of a service from one process to the next: RUN/track/SERVICE.json."""

    id: str = ""
    """The service's name of the run, where it is the service that gives it."""
    sent: int = -1
    """The step up to which the service has the figures."""
    before: int = -1
    """`sent` when the newest process began."""
    open: bool = False
    """That process has not ended as it should: what came after `before` may be lost."""
    folder: str = ""
    """What that process writes into, where the service is offline."""
    closed: list[str] = []
    """The names of the folders of those that have ended as they should, where the service is offline."""
    newest: dict[str, float] = {}
    """Each figure as it was sent last."""
    evaluation: str = ""
    """The evaluation that the service has."""


class Service(Protocol):
    """One of to_wandb, to_mlflow, to_clearml."""

    def open(self, about: About, state: State, folder: Path) -> int:
        """Makes the service's run, or takes it up again. Returns the step up to which it has the figures."""

    def rows(self, rows: list[Row]) -> None:
        """Takes the figures of further steps."""

    def facts(self, facts: dict[str, float], step: int) -> None:
        """Takes figures of the whole run as they are after that step, in place of those that it has."""

    def evaluation(self, found: Content, step: int) -> None:
        """Takes an evaluation's result."""

    def close(self, state: str) -> None:
        """Returns when the service has everything. `state`: see Content."""


def send(run: Run, name: str, ending: Callable[[float], bool], once: bool = False) -> int:
    """Sends to the service of that name until `ending(seconds)`, which waits for so long at most, is true.
    `once`: says what it waits for, and ends the process with 1 where the service never answers.

    Returns 0 if the service has all that there is to tell, 1 if not. Raises UserError if its package is not
    there, or the run's directory takes no note of what is sent.
    """
    if not trackers.is_installed(name):
        raise UserError(f"{name} is not installed: {sys.executable} -m pip install {name}")
    folder = run.path / files.TRACK()
    try:
        folder.mkdir(exist_ok=True)
        log = (folder / f"{name}.log").open("ab")
    except OSError as error:
        raise UserError(f"{folder}: cannot record there what is sent: {error.strerror}") from None
    with apart(log) as output, turn(folder / f"{name}.lock", ending) as mine:
        if not mine:
            print(f"another process is sending {run.name} to {name}", file=output, flush=True)
            return 1
        return Sender(run, name, folder, output, once).until(ending)


def said_by(log: Path) -> str:
    """Where to read on; "" if the service's package has said nothing."""
    return f"; what its package said: {log}" if log.stat().st_size else ""


class Sender:
    def __init__(self, run: Run, name: str, folder: Path, output: TextIO, once: bool) -> None:
        self.run, self.name, self.folder, self.output, self.once = run, name, folder, output, once
        self.state_file = folder / f"{name}.json"
        self.service: Service | None = None
        self.about: About | None = None
        self.state = State()
        self.failed = ""
        self.facts: dict[str, float] = {}
        self.last: Content | None = None

    def until(self, ending: Callable[[float], bool]) -> int:
        seen: object = None
        while True:
            stamp = self.stamp()
            fine = True if stamp == seen else self.attempt(self.update)
            seen, tried = (stamp if fine else None), time.monotonic()
            if ending(POLL if fine else RETRY):
                break
        if not fine and time.monotonic() - tried < 1.0:
            return 1  # once more would be as long in vain
        return 0 if self.attempt(self.update) and self.attempt(self.close) else 1

    def stamp(self) -> object:
        """Changes when there may be something new to tell."""
        found = []
        for path in (self.run.events, self.run.config):
            with contextlib.suppress(OSError):
                found.append(path.stat().st_size)
        return found

    def attempt(self, action: Callable[[], None]) -> bool:
        """Whether it went well. A service that does not answer, or that refuses, is said once, and begun
        anew later."""
        try:
            action()
        except Exception as error:  # its package's, of whatever kind
            reason = one_line(error, 1500)  # MLflow says what it needs in 700
            if reason != self.failed:
                print(f"{self.name} did not accept the curves: {reason}", file=self.output, flush=True)
            self.failed, self.service = reason, None
            return False
        if self.failed:
            print(f"{self.name} takes the curves again", file=self.output, flush=True)
            self.failed = ""
        return True

    def update(self) -> None:
        found = self.last = content.read(self.run, time.time())
        if not found.rows and not found.evaluation and found.state != "finished":
            return  # nothing to begin a run of the service for
        service = self.service or self.begin()
        new = [(step, row) for step, row in found.rows if step > self.state.sent]
        if new:
            service.rows(new)
            self.state.sent = new[-1][0]
            for _, row in new:
                self.state.newest |= {key: one for key, one in row.items() if not isinstance(one, Path)}
        if new or found.facts != self.facts:
            service.facts(found.facts, self.state.sent)
            self.facts = found.facts
        if found.evaluation and found.evaluation != self.state.evaluation:
            service.evaluation(found, self.state.sent)
            self.state.evaluation = found.evaluation
        self.remember()

    def begin(self) -> Service:
        known = records.read_json(self.state_file)
        with contextlib.suppress(msgspec.ValidationError):
            self.state = msgspec.convert(known, State)
        if self.state.open:
            self.state.sent, self.state.evaluation = self.state.before, ""
        self.about = content.about(self.run)
        module = importlib.import_module(f"launch.observe.tracking.to_{self.name}")
        service: Service = module.Service()
        with self.patience():
            self.state.sent = service.open(self.about, self.state, self.folder)
        if self.state.sent < 0:  # it has nothing yet
            self.state.evaluation = ""
        self.state.before, self.state.open = self.state.sent, True
        self.facts = {}
        self.remember()
        self.service = service
        return service

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Of somebody who waits for a service's first answer."""

        def say() -> None:
            print(
                f"{self.name} has not answered yet: waiting {ANSWERS:.0f} s at most",
                file=self.output,
                flush=True,
            )

        def give_up() -> None:
            where = said_by(self.folder / f"{self.name}.log")
            print(f"{self.name} does not answer: nothing is sent{where}", file=self.output, flush=True)
            os._exit(1)  # its package cannot be interrupted

        timers = [threading.Timer(SAY, say), threading.Timer(ANSWERS, give_up)] if self.once else []
        for timer in timers:
            timer.daemon = True
            timer.start()
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()

    def close(self) -> None:
        if self.service is None:
            return
        self.service.close(self.last.state if self.last else "going")
        self.service = None
        self.state.open = False
        if self.state.folder:
            self.state.closed.append(Path(self.state.folder).name)
        self.remember()

    def remember(self) -> None:
        write_atomically(self.state_file, msgspec.json.encode(self.state), durable=False)


@contextlib.contextmanager
def apart(file: BinaryIO) -> Iterator[TextIO]:
    """What the service's package prints goes to `file`, then closed; what this gives is standard output."""
    sys.stdout.flush()
    output = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    with file, output:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield output
        finally:
            sys.stdout.flush()
            os.dup2(output.fileno(), 1)


@contextlib.contextmanager
def turn(lock: Path, ending: Callable[[float], bool]) -> Iterator[bool]:
    """Whether no other process sends to the same service; waits for one that does, until TURN or `ending`."""
    deadline = time.monotonic() + TURN
    with lock.open("a") as file:
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                if time.monotonic() > deadline or ending(0.5):
                    yield False
                    return
            except OSError:  # a file system without locks
                break
            else:
                break
        yield True
