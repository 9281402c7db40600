"""One preparation at a time in a data root, across processes and nodes, and none blocked by a dead one.

`.prepare.lock` names its owner: job, host, process. It is created exclusively, which is atomic even on NFS,
and its modification time is the owner's heartbeat. A lock is stale if its owner is a process of this machine
that has exited, or an earlier start of this same Slurm job, or if its heartbeat stops for a minute on the
watcher's own clock: clocks of different nodes are never compared. Taking over is guarded by a kernel lock; if
the file system has none, or somebody else holds it (for which read access to the folder suffices),
`Lock.check` before publishing still tells an owner that it was superseded.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from jobs.catalog.owner import NAME, Owner, is_dead, myself, read
from jobs.run import private
from jobs.run.errors import MALFORMED, UserError

BEAT = 5.0
STALE = 60.0
POLL = 0.5
GUARD_SECONDS = 10.0
"""How long to wait for the kernel lock, which is normally held only for a moment."""
TELL_SECONDS = 1.0


class Lock:
    """The lock while it is held; its heartbeat runs in a thread."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self.path = path
        self.owner = owner
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.beat, daemon=True)
        self.thread.start()

    def beat(self) -> None:
        while not self.stopped.wait(BEAT):
            with contextlib.suppress(OSError):  # check() before publishing decides
                if not self.is_ours():
                    return
                os.utime(self.path)

    def is_ours(self) -> bool:
        """Whether the lock is still ours. Raises OSError if it cannot be read now."""
        try:
            return bool(json.loads(self.path.read_text(encoding="utf-8"))["token"] == self.owner.token)
        except (FileNotFoundError, *MALFORMED):
            return False

    def check(self) -> None:
        """Raises UserError if another process has taken the lock over, as after a long suspension."""
        if not self.is_ours():
            holder = read(self.path.parent)
            who = holder[0] if holder else "another process"
            raise UserError(
                f"{self.path} was taken over by {who} while this process stood still; it goes on there"
            )

    def release(self) -> None:
        self.stopped.set()
        self.thread.join()
        with contextlib.suppress(OSError):  # read-only by now: others take it over
            if self.is_ours():
                self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(
    data_root: Path,
    wait: bool = True,
    on_wait: Callable[[Owner], object] = lambda _: None,
    done: Callable[[], bool] = lambda: False,
    stale: float = STALE,
    folder: str = "",
) -> Iterator[Lock | None]:
    """Holds the data root's lock; waits for its owner, which is reported to `on_wait` once.

    `folder`: what will be prepared, for others to read.
    Yields None if `done()` became true while waiting: the owner did the work. Raises UserError if another
    process holds the lock and `wait` is false, or if the folder cannot be written.
    """
    lock = acquire(data_root, myself(folder), wait, on_wait, done, stale)
    try:
        yield lock
    finally:
        if lock:
            lock.release()


def acquire(
    data_root: Path,
    owner: Owner,
    wait: bool,
    on_wait: Callable[[Owner], object],
    done: Callable[[], bool],
    stale: float,
) -> Lock | None:
    path = data_root / NAME
    seen: tuple[str, float] | None = None
    since = time.monotonic()
    announced = ""
    while True:
        with guard(data_root):
            if create(path, owner):
                return Lock(path, owner)
            held = read(data_root)
            silent = (
                held is not None and seen == (held[0].token, held[1]) and time.monotonic() - since > stale
            )
            if held and (silent or is_dead(held[0])):
                path.unlink(missing_ok=True)
                continue
        if held is None:
            if path.is_symlink():
                raise UserError(f"{path} is a dangling link instead of a lock: remove it")
            continue
        if (held[0].token, held[1]) != seen:
            seen, since = (held[0].token, held[1]), time.monotonic()
        if not wait:
            raise UserError(f"{data_root} is being prepared by {held[0]} (lock {path}): wait for it")
        if held[0].token != announced:
            announced = held[0].token
            on_wait(held[0])
        # The owner may be on another node: there is no event to wait for, only its file to poll.
        time.sleep(POLL)
        if done():
            return None


def create(path: Path, owner: Owner) -> bool:
    """Creates the lock; False if it exists already. Raises OSError if the folder cannot be written."""
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(fd, json.dumps(asdict(owner)).encode())
        with contextlib.suppress(OSError):
            os.fchmod(fd, 0o644)  # for colleagues to read, whatever the umask
    except OSError:
        # On a full disk: an empty lock would block everybody.
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    return True


@contextlib.contextmanager
def guard(data_root: Path) -> Iterator[None]:
    """A kernel lock on the folder, so that two processes do not take over one stale lock at once.

    A process that holds it for long is named on standard error, and from GUARD_SECONDS on ignored.
    """
    try:
        fd = os.open(data_root, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        raise UserError(f"{data_root} no longer exists: somebody has removed it") from None
    began, announced = time.monotonic(), False
    try:
        while not private.lock_alone(fd):
            waited = time.monotonic() - began
            if waited > TELL_SECONDS and not announced and data_root not in _passed_over:
                announced = True
                print(f"{data_root} is locked by {_holders(fd)}; waiting", file=sys.stderr, flush=True)
            if waited > GUARD_SECONDS or data_root in _passed_over:
                if data_root not in _passed_over:
                    print(
                        f"{data_root} is still locked by {_holders(fd)}: going on",
                        file=sys.stderr,
                        flush=True,
                    )
                _passed_over.add(data_root)
                break
            time.sleep(0.02)  # a kernel lock has no wait with a timeout
        yield
    finally:
        os.close(fd)


_passed_over: set[Path] = set()


def _holders(fd: int) -> str:
    """Who holds the kernel lock on an open file; proc(5): `1: FLOCK ADVISORY WRITE PID MAJ:MIN:INODE`."""
    status = os.fstat(fd)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1:2] == ["FLOCK"] and words[5:6] == [place]:
                found.append(f"process {words[4]}{_of_whom(words[4])}")
    return " and ".join(found) or "a process that cannot be seen from here, perhaps on another node"


def _of_whom(pid: str) -> str:
    try:
        return f" of {private.user(os.stat(f'/proc/{pid}').st_uid)}"
    except OSError:
        return ""
