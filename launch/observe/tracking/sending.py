"""Sends what is final in a run to one service, repeatedly until told to end.

Each service has its own process, so that one that hangs delays neither the training, which knows nothing of
them, nor another service. What could not be sent is sent by the next process: that of the next start, of the
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
"""Seconds between checks of an active run."""
RETRY = 60.0
"""Seconds before a service that failed is tried again."""
SAY = 5.0
"""Seconds after which a service that has not answered is named."""
ANSWERS = 75.0
"""Seconds that a service may take to answer with `once`: ClearML would retry for ever. An evaluation waits a
little longer (jobs/supervise/tracking.py)."""
TURN = 30.0
"""Seconds to wait for another process that sends to the same service."""


class State(msgspec.Struct, kw_only=True):
    """What is kept about a service from one process to the next: RUN/track/SERVICE.json."""

    id: str = ""
    """The run's id in the service, if the service assigns it."""
    sent: int = -1
    """The step up to which the service has the figures."""
    before: int = -1
    """`sent` when the newest process started."""
    open: bool = False
    """That process has not exited properly: what came after `before` may be lost."""
    folder: str = ""
    """The folder into which that process writes, if the service is offline."""
    closed: list[str] = []
    """The names of the folders of processes that exited properly, if the service is offline."""
    newest: dict[str, float] = {}
    """Each figure as last sent."""
    evaluation: str = ""
    """The evaluation that the service has."""


class Service(Protocol):
    """The interface of to_wandb, to_mlflow and to_clearml."""

    def open(self, about: About, state: State, folder: Path) -> int:
        """Creates the service's run, or resumes it. Returns the step up to which it has the figures."""

    def rows(self, rows: list[Row]) -> None:
        """Sends the figures of further steps."""

    def facts(self, facts: dict[str, float], step: int) -> None:
        """Sends figures of the run as a whole after that step, which replace earlier ones."""

    def evaluation(self, found: Content, step: int) -> None:
        """Sends an evaluation's result."""

    def close(self, state: str) -> None:
        """Returns when the service has everything. `state`: see Content."""


def send(run: Run, name: str, ending: Callable[[float], bool], once: bool) -> int:
    """Sends to the service of that name until `ending(seconds)`, which waits at most that long, returns True.
    `once`: prints what it waits for, and exits with 1 if the service never answers.

    Returns 0 if the service has everything, 1 if not. Raises UserError if its package is not installed, or if
    what is sent cannot be recorded in the run's directory.
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
    """A reference to the log of the service's package; "" if it is empty."""
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
            return 1  # another attempt would take as long in vain
        return 0 if self.attempt(self.update) and self.attempt(self.close) else 1

    def stamp(self) -> object:
        """A value that changes when there may be something new to send."""
        found = []
        for path in (self.run.events, self.run.config):
            with contextlib.suppress(OSError):
                found.append(path.stat().st_size)
        return found

    def attempt(self, action: Callable[[], None]) -> bool:
        """Whether `action` succeeded. If the service does not answer, or refuses, that is printed once, and
        the service is started anew later."""
        try:
            action()
        except Exception as error:  # its package's, of any kind
            reason = one_line(error, 1500)  # MLflow needs up to 700 characters to say what is wrong
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
            return  # nothing yet that is worth a run in the service
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
        """With `once`: says so if the service's first answer takes long, and exits if it never comes."""

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
    """Redirects what the service's package prints to `file`, then closed; yields the standard output."""
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
    """Yields whether no other process sends to the service, after waiting for TURN s or until `ending`."""
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
