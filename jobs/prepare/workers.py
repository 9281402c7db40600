"""Uses all the cores that the job was given, for work in batches."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

BUSY, MOST_PENDING = 4, 64
"""Batches queued per worker to keep it busy, and the most in total, to bound the memory."""

MOST = 16
"""The most workers, however many cores there are: they keep up with the one thread that inflates SBD, and at
some 30 MB of memory each stay well below 1 GiB."""


NICER = 5
"""Increment of the nice value for parallel work, relative to what cannot be parallelised."""


def cores() -> int:
    """The cores that this process may use, up to `MOST`: by affinity, or Slurm's figure if that is less."""
    count = len(os.sched_getaffinity(0))
    return max(1, min(count, int(os.environ.get("SLURM_CPUS_PER_TASK") or count), MOST))


class Workers:
    """`submit` work, then get the `results`; with one worker, everything runs at once in this process."""

    def __init__(self, count: int) -> None:
        self.pool: ProcessPoolExecutor | None = None
        self.pending: deque[Future[Any]] = deque()
        self.collected: list[Any] = []
        self.count = count
        keep_memory()
        if count > 1:
            # Spawned, not forked, because the heartbeat and the inflating thread are running.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(count, context, initializer=begin, initargs=(os.getpid(),))

    def submit(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Runs `work`; blocks while too much is queued. Raises what earlier work raised."""
        if self.pool is None:
            self.collected.append(work(*arguments))
            return
        self.pending.append(self.pool.submit(work, *arguments))
        while len(self.pending) > MOST_PENDING * self.count:
            self.collected.append(self.pending.popleft().result())

    def room(self) -> bool:
        """Whether the workers could soon run out of work. Raises what earlier work raised."""
        while self.pending and self.pending[0].done():
            self.collected.append(self.pending.popleft().result())
        return len(self.pending) < BUSY * self.count

    def ready(self) -> list[Any]:
        """The results that are ready so far, in order. Raises what the work raised."""
        self.room()
        collected, self.collected = self.collected, []
        return collected

    def results(self) -> list[Any]:
        """The results of all work submitted so far, in order. Raises what it raised."""
        while self.pending:
            self.collected.append(self.pending.popleft().result())
        collected, self.collected = self.collected, []
        return collected

    def end(self, kill: bool) -> None:
        if self.pool is None:
            return
        if kill:
            # They ignore signals, and nothing of theirs is needed any more.
            for process in multiprocessing.active_children():
                process.kill()
            let_go(self.pool)
        self.pool.shutdown(cancel_futures=True)


def let_go(pool: ProcessPoolExecutor) -> None:
    """Python 3.10, and Debian 12's 3.11, wait for ever for dead workers to read what was sent to them
    (github.com/python/cpython/issues/94777). Closing the reading end makes them give up."""
    queue: Any = getattr(pool, "_call_queue", None)
    if queue is not None and not hasattr(queue, "_terminate_broken"):
        queue._reader.close()


@contextmanager
def start(count: int) -> Iterator[Workers]:
    workers = Workers(count)
    try:
        yield workers
    except BaseException:
        workers.end(kill=True)
        raise
    workers.end(kill=False)


def no_inner_threads() -> None:
    """Keeps NumPy, if imported after this, from creating its own threads: there are enough processes, and the
    threads first spin, which costs as much as converting hundreds of masks."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def keep_memory() -> None:
    """Makes malloc keep freed blocks of a mask's size: getting them anew costs more than converting one."""
    m_trim_threshold, m_mmap_threshold = -1, -3
    with contextlib.suppress(AttributeError):  # musl has no mallopt, and does not need it
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, 64 << 20)
        libc.mallopt(m_trim_threshold, 64 << 20)


def begin(parent: int) -> None:
    """Initializes a worker: it ends with its parent, and leaves signals to it."""
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    keep_memory()
    # Inflating SBD is one long thread in the parent, which has priority over the workers.
    os.nice(NICER)
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it had gone before
        os._exit(1)
