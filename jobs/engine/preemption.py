"""A preemption inside a rank, from the signal to the exit. (docs/surviving.md names the files around it.)

1. `listen` is called before anything heavy is imported. USR2 and TERM only set a flag; a separate thread does
   that, so that it also works while the main thread waits inside a collective. (Until then, both signals are
   ignored: `start` in jobs/supervise/processes.py.)
2. In every step the ranks agree on whether to exit: `Agreement`, a reduction on a gloo group that runs while
   the step computes. All see the same answer at the end of the same step.
3. They save at that exact step (saving.py) and `leave` together with exit code RESUME. Slurm, or the job
   script, starts the run again, and that start finds the checkpoint.

A validation is not a step: the state before it was saved when it began. So a rank that is asked to exit
during one does so at once, from the thread, and the validation is run again after the resume.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, NoReturn

from jobs.run.exit_codes import FAILED, RESUME

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
PR_SET_PDEATHSIG = 1

# Shared with DataLoader workers, which ignore the signals until the trainer itself is about to exit.
_closing = multiprocessing.get_context("fork").Value("b", 0, lock=False)


class Preemption:
    """Whether this rank was asked to exit, and what to do about it during a validation."""

    def __init__(self) -> None:
        self.asked = False
        self.when_asked: Callable[[str], None] = lambda _: None
        """Called once per signal, on the listening thread."""
        self.leave_validation: Callable[[], None] | None = None
        """Set during a validation: exits the process."""
        self.stood_still = 0.0
        """Seconds, roughly, for which this process has been suspended (SIGSTOP, `scontrol suspend`)."""
        self.leaving = False
        """Whether the listening thread is about to exit the process."""
        self._elsewhere: Callable[[], bool] | None = None
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)

    def listen(self) -> None:
        """Installs handlers for both signals, which from here on cannot end the process."""
        # These bytes arrive even while the main thread is in C++ and no Python handler can run.
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGCONT, lambda *_: None)
        signal.siginterrupt(signal.SIGCONT, False)
        threading.Thread(target=self._listen, name="preemption", daemon=True).start()

    def _listen(self) -> None:
        try:
            self._watch()
        except BaseException:
            # A rank that can no longer notice a preemption must not continue.
            traceback.print_exc()
            leave(FAILED)

    def _watch(self) -> None:
        while True:
            # During a validation, other ranks may have been asked instead of this one.
            timeout, slept = 0.25 if self.leave_validation else 1.0, time.monotonic()
            self._reader.settimeout(timeout)
            try:
                received = self._reader.recv(64)
            except TimeoutError:
                received = b""
            if signal.SIGCONT in received:
                self.stood_still += max(0.0, time.monotonic() - slept - timeout / 2)
            for number in received:
                if number in SIGNALS:
                    self.asked = True
                    self.when_asked(signal.Signals(number).name)
            leave = self.leave_validation
            if leave and (self.asked or (self._elsewhere and self._elsewhere())):
                # From here on, errors in the main thread only mean that the other ranks have exited.
                self.leaving = True
                leave()

    @contextmanager
    def validating(self, leave: Callable[[], None], elsewhere: Callable[[], bool] | None) -> Iterator[None]:
        """While the block runs, a request to exit, here or (by `elsewhere`) at another rank calls `leave`."""
        self._elsewhere = elsewhere
        self.leave_validation = leave
        # Wake the thread: it has to check earlier signals and the other ranks.
        self._writer.send(b"\0")
        try:
            yield
        finally:
            self.leave_validation = None


class Agreement:
    """What all ranks do at the end of a step: the maximum of their wishes, for each of a few questions.

    Call `propose` at the beginning of a step and `answer` at its end: in between, the reduction runs on its
    own thread, at no measurable cost. So a signal takes effect at the end of the step after the one in which
    it arrived.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self._work: Any = None
        self._numbers: Any = None
        self._alone: tuple[int, ...] = ()

    def propose(self, *wishes: bool) -> None:
        if self.group is None:
            self._alone = tuple(int(wish) for wish in wishes)
            return
        import torch
        import torch.distributed as dist

        self._numbers = torch.tensor([int(wish) for wish in wishes], dtype=torch.uint8)
        self._work = dist.all_reduce(self._numbers, dist.ReduceOp.MAX, group=self.group, async_op=True)

    def answer(self) -> tuple[bool, ...]:
        if self.group is None:
            return tuple(bool(number) for number in self._alone)
        self._work.wait()
        return tuple(bool(number) for number in self._numbers.tolist())

    def now(self, *wishes: bool) -> tuple[bool, ...]:
        self.propose(*wishes)
        return self.answer()


def leave(code: int = RESUME) -> NoReturn:
    """Exits at once: destructors could wait for a collective or a worker that will never come."""
    _closing.value = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def closing() -> None:
    """From here on, the DataLoader's workers obey SIGTERM again, with which torch ends them."""
    _closing.value = 1


def outlive(loader: Any) -> None:
    """Makes the workers of a DataLoader survive a signal to the whole process group: they start with the
    signals blocked, and unblock them once they have handlers (`InWorker`)."""
    make = loader._get_iterator

    def make_blocked() -> Any:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            if (loader.multiprocessing_context or multiprocessing).get_start_method() != "fork":
                # Otherwise it starts with the first worker, and unblocks SIGTERM at that moment.
                resource_tracker.ensure_running()
                signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            return make()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    loader._get_iterator = make_blocked
    loader.worker_init_fn = InWorker(loader.worker_init_fn)


class InWorker:
    """A `worker_init_fn`: makes a DataLoader worker survive a signal to the whole group, but not the trainer.

    Slurm signals every process of a job step. A worker that died of it would end the trainer before it has
    saved; one that ignored it for good could never be ended by torch.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then = then
        self.closing = _closing
        self.trainer = os.getpid()

    def __call__(self, worker: int) -> None:
        signal.set_wakeup_fd(-1)
        for number in (*SIGNALS, signal.SIGINT):
            signal.signal(number, self.on_signal)
        # The kernel kills the worker when the trainer ends, however that happens.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self.trainer:
            os._exit(0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if self.then:
            self.then(worker)

    def on_signal(self, *_: Any) -> None:
        if self.closing.value:
            os._exit(0)


class LeaveTogether:
    """The ranks' exit from a validation, in which they may be anywhere: no rank exits before all know that
    they are to exit, and rank 0 has finished writing.

    If all reach the end of the validation first, they agree there (`Survival.validate`), as after a step.
    `store`: a separate connection to the ranks' store, because the main thread may be waiting on the other.
    """

    def __init__(self, store: Any, key: str, ranks: int, rank: int) -> None:
        self.store, self.ranks, self.rank = store, ranks, rank
        self.leaving, self.written = f"{key}/baton/leaving", f"{key}/baton/written"

    def elsewhere(self) -> bool:
        try:
            # Not store.check, which is new in torch 2.2.
            return int(self.store.add(self.leaving, 0)) > 0
        except RuntimeError:
            # The store is gone with rank 0: the supervisor will end this rank, too.
            return False

    def go(self, finish_writing: Callable[[], None]) -> NoReturn:
        try:
            left = self.store.add(self.leaving, 1)
            while left < self.ranks:
                # The others check every quarter of a second.
                time.sleep(0.05)
                left = self.store.add(self.leaving, 0)
            if self.rank == 0:
                finish_writing()
                self.store.set(self.written, "1")
            else:
                self.store.wait([self.written])
        except RuntimeError as error:
            print(f"rank {self.rank}: leaving without rank 0, which is gone: {error}", file=sys.stderr)
        leave()
