"""All the cores the job was given, for work that comes in batches."""

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
"""Batches waiting for each worker: enough to keep it busy, and few enough to bound the memory."""

MOST = 16
"""Workers, however many cores there are: inflating SBD takes one thread longer than these need to follow it,
and each takes some 30 MB of memory, so all together stay well below 1 GiB."""


NICER = 5
"""By how much whatever can be spread over the cores stands back for what cannot."""


def cores() -> int:
    """The cores this process may use, up to `MOST`: Slurm's figure where it is below the affinity."""
    count = len(os.sched_getaffinity(0))
    return max(1, min(count, int(os.environ.get("SLURM_CPUS_PER_TASK") or count), MOST))


class Workers:
    """`submit` work, then `results`; with one worker everything happens at once in this process."""

    def __init__(self, count: int) -> None:
        self.pool: ProcessPoolExecutor | None = None
        self.pending: deque[Future[Any]] = deque()
        self.collected: list[Any] = []
        self.count = count
        keep_memory()
        if count > 1:
            # Spawned, not forked: the heartbeat and the inflating thread are running.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(count, context, initializer=begin, initargs=(os.getpid(),))

    def submit(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Runs `work`; blocks while too much is waiting. Raises what earlier work raised."""
        if self.pool is None:
            self.collected.append(work(*arguments))
            return
        self.pending.append(self.pool.submit(work, *arguments))
        while len(self.pending) > MOST_PENDING * self.count:
            self.collected.append(self.pending.popleft().result())

    def room(self) -> bool:
        """Whether the workers could soon be without work. Raises what earlier work raised."""
        while self.pending and self.pending[0].done():
            self.collected.append(self.pending.popleft().result())
        return len(self.pending) < BUSY * self.count

    def ready(self) -> list[Any]:
        """What the first of the work returned, as far as it is done, in order. Raises what it raised."""
        self.room()
        collected, self.collected = self.collected, []
        return collected

    def results(self) -> list[Any]:
        """What all work submitted so far returned, in order. Raises what it raised."""
        while self.pending:
            self.collected.append(self.pending.popleft().result())
        collected, self.collected = self.collected, []
        return collected

    def end(self, kill: bool) -> None:
        if self.pool is None:
            return
        if kill:
            # They ignore signals; nothing of theirs is wanted any more.
            for process in multiprocessing.active_children():
                process.kill()
            let_go(self.pool)
        self.pool.shutdown(cancel_futures=True)


def let_go(pool: ProcessPoolExecutor) -> None:
    """Python 3.10, and 3.11 as Debian 12 has it, wait for ever for workers that are gone to read what is on
    its way to them (github.com/python/cpython/issues/94777). Where nobody can read it, it is given up."""
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
    """Keeps NumPy, imported after this, from threads of its own: every process would be one too many, and
    their first act is to spin, which costs as much as converting hundreds of masks."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def keep_memory() -> None:
    """Has malloc keep freed blocks of a mask's size: fetching them anew costs more than converting one."""
    m_trim_threshold, m_mmap_threshold = -1, -3
    with contextlib.suppress(AttributeError):  # musl has no mallopt, and does not need it
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, 64 << 20)
        libc.mallopt(m_trim_threshold, 64 << 20)


def begin(parent: int) -> None:
    """A worker's first act: outlive no parent, leave signals to it."""
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    keep_memory()
    # Inflating SBD is one long thread of the parent's: the workers take what it leaves of the cores.
    os.nice(NICER)
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it had gone before
        os._exit(1)
