"""Any PyTorch training as a run of Baton: the worker's side of the protocol (docs/worker-protocol.md).

    from jobs.worker import Worker

    with Worker() as worker:            # from here on, preemption signals are handled
        device = worker.join()          # the ranks' process group
        kept = worker.load()            # the state in the newest valid checkpoint; None at first
        ...
        for step in range(done + 1, steps + 1):
            worker.begin_step()
            ...                         # forward, backward, optimizer
            worker.end_step(step, state, save=step % 100 == 0)
        worker.finish(step, state)

`state` is a function that returns what a resume needs, as tensors and plain Python values. Imports no torch
before `join`, `load` or `save`. examples/plain_pytorch.py is a complete training.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from jobs.engine import checkpoints, endings, progress
from jobs.engine.preemption import Agreement, Preemption, closing, leave, outlive
from jobs.engine.session import Session, from_environment
from jobs.run import files, metrics
from jobs.run.directory import Run
from jobs.run.errors import UserError
from jobs.run.exit_codes import USER_ERROR
from jobs.run.streams import TolerantStream
from jobs.supervise.heartbeat import Heartbeat

__all__ = ["UserError", "Worker", "outlive"]

RETRY = 2.0
"""Seconds between a preempted run's attempts to save on a full disk."""

State = Callable[[], dict[str, Any]]


class Worker:
    """One rank of a training, as a context manager: an error in its block ends all ranks and is the one that
    status shows; a `UserError` ends the run as the user's mistake, which another start could not fix."""

    def __init__(self) -> None:
        """Exits with code 2 if the process was not started by one of Baton's supervisors."""
        self.preemption = Preemption()
        self.preemption.listen()
        if "BATON_RUN" not in os.environ:
            print(
                "error: there is no run to work on (BATON_RUN is not set): "
                f"python launch/train.py --worker {sys.argv[0]} starts one",
                file=sys.stderr,
            )
            leave(USER_ERROR)
        sys.stdout, sys.stderr = TolerantStream(sys.stdout), TolerantStream(sys.stderr)
        self.run = Run(os.environ["BATON_RUN"])
        self.start, self.rank = int(os.environ["BATON_START"]), int(os.environ["RANK"])
        self.stacks = (self.run.job / files.STACKS(START=self.start, RANK=self.rank)).open("a")
        faulthandler.register(signal.SIGUSR1, self.stacks, all_threads=True)
        faulthandler.enable(2)  # shows where it was if native code ends it
        try:
            self.session: Session = from_environment(self.run)
        except UserError as error:
            endings.end(error, self.run, self.start, self.rank, self.preemption)
        self.ranks, self.main = self.session.ranks, self.session.main
        self.seed = self.session.request.seed
        """`--seed`. Derive all randomness from it and the step number alone; then a resume draws the same."""
        self.steps: int | None = None
        """The total number of steps, if you set it: for the remaining time that status shows."""
        self.on_disk = (0, 0)
        """The step and epoch from which a resume would start now, as far as rank 0 knows."""
        self._agreement = Agreement(None)
        self._first: tuple[int, float] | None = None
        self._shown = -math.inf
        self._scalars: dict[str, float | None] = {}
        self._finished = False
        self._trouble = ""
        self._heart = Heartbeat()
        # The supervisor has kept the signals that came before this.
        self.beat("start", 0)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        done = self._finished and isinstance(error, SystemExit) and not error.code
        if error is not None and not done:
            endings.end(error, self.run, self.start, self.rank, self.preemption)

    # ------------------------------------------------------------------------------------------- beginning

    def join(self) -> str:
        """Creates torch's default process group of all ranks, if there are several: NCCL with GPUs, gloo
        without. Returns the device: cuda (with this rank's GPU as the current one) or cpu."""
        from jobs.engine import distributed

        distributed.join(self.session)
        self._agreement = Agreement(self.session.control)
        return self.session.device

    def load(self) -> dict[str, Any] | None:
        """The state in the newest valid checkpoint, with tensors on the CPU; None if there is none yet. All
        ranks must call it, after `join`.

        Raises UserError if there are checkpoints but no valid one, or if the newest holds more than data.
        """
        from jobs.engine import distributed, safe_load

        found = checkpoints.newest(self.run.checkpoints, self.session.report) if self.main else None
        if self.main:
            with contextlib.suppress(OSError):  # only disk space is lost
                checkpoints.clear(self.run.checkpoints, self.run.job, self.start)
        name, step, epoch = distributed.everywhere(
            self.session, (found.path.name, found.step, found.epoch) if found else ("", 0, 0)
        )
        if not name:
            return None
        # Copied, because the loaded tensors are mapped from the file, which will be pruned.
        state = copy.deepcopy(safe_load.load_own(self.run.checkpoints / name)["state"])
        self.on_disk = (step, epoch)
        if self.main:
            self.session.report("resumed", step=step, epoch=epoch, checkpoint=name)
        return dict(state)

    # --------------------------------------------------------------------------------------------- at work

    @property
    def asked(self) -> bool:
        """Whether this rank was asked to save and exit. Only `end_step` knows about the others."""
        return self.preemption.asked

    def beat(self, phase: str, step: int) -> None:
        """Sends a sign of life, needed if a step takes long. `phase`: start, train, validate, save or end."""
        self._heart.beat(phase, int(step))

    def begin_step(self) -> None:
        """Starts the ranks' agreement on whether to exit, which overlaps with the step's computation."""
        self._agreement.propose(self.preemption.asked)

    def end_step(self, step: int, state: State, *, epoch: int = 0, save: bool = False) -> None:
        """Ends step number `step`, counted from 1: if any rank was asked to exit, all save and exit, and this
        does not return. `save`, which must be the same on all ranks: save in any case.

        Raises FencedOff if a later start of the run is under way; do not catch it.
        """
        step, epoch = int(step), int(epoch)
        (leaving,) = self._agreement.answer()
        self.beat("train", step)
        self._show(step, epoch)
        if leaving:
            self._leave(step, state, epoch)
        if save:
            self.save(step, state, epoch=epoch)

    def log(self, step: int, *, epoch: int = 0, kind: str = "train", **scalars: float) -> None:
        """Records scalars of a step, for status, the report and metrics.jsonl. `kind`: train or val.

        Numbers here and elsewhere may be Python's, NumPy's, or tensors with one element."""
        if self.main:
            numbers = _numbers(scalars)
            self._scalars |= numbers if kind == "train" else {}
            progress.record(self.session, kind, int(step), int(epoch), numbers)

    def validated(
        self,
        step: int,
        *,
        epoch: int = 0,
        metric: str = "",
        less: bool | None = None,
        seconds: float = 0.0,
        **scalars: float,
    ) -> None:
        """Records a validation's results after this step, from rank 0; other ranks' are ignored. `metric` (by
        default the first scalar) is the run's main metric, `less` whether less of it is better (by default
        for a loss), `seconds` how long it took.

        Raises ValueError if `metric` is not among the scalars.
        """
        metric = metric or next(iter(scalars), "")
        if metric not in scalars:
            raise ValueError(f"validated: the metric {metric!r} is not one of {', '.join(scalars)}")
        self.log(step, epoch=epoch, kind="val", **scalars)
        self.report(
            "validated", step=int(step), epoch=int(epoch), seconds=round(float(seconds), 3),
            metrics=_numbers(scalars) if self.main else {}, metric=metric,
            less=bool(metrics.less_is_better(metric) if less is None else less) or None,
        )  # fmt: skip

    def report(self, event: str, **fields: Any) -> None:
        """Appends an event (docs/run-directory.md) on rank 0."""
        if self.main:
            plain = {
                name: value.item() if hasattr(value, "item") else value for name, value in fields.items()
            }
            self.session.report(event, **plain)

    def _show(self, step: int, epoch: int) -> None:
        if not self.main:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
            began = time.time() - self.session.began
            self.report("first_step", step=step, seconds=round(began, 3))
        if now - self._shown < progress.INTERVAL:
            return
        self._shown, (first, since) = now, self._first
        steps = None if self.steps is None else int(self.steps)
        pace = (now - since) / (step - first) if step > first else None
        progress.show(
            self.session, step=step, epoch=epoch, max_steps=steps, seconds_per_step=pace,
            phase="train", **{name: self._scalars[name] for name in ("loss", "lr") if name in self._scalars},
        )  # fmt: skip

    # ----------------------------------------------------------------------------------------------- saving

    def save(self, step: int, state: State, *, epoch: int = 0, why: str = "interval") -> bool:
        """Saves the state of this step, completely or not at all; all ranks must call it. Returns whether it
        is on disk (meaningful on rank 0): a full disk costs a checkpoint, not the training.

        Raises UserError for a state that could not be loaded again, FencedOff as `end_step` does."""
        step, epoch, content = int(step), int(epoch), state()
        if not self.main or self.on_disk == (step, epoch):
            return True
        from jobs.engine import storable

        # Every time: what was None at the first save may be a Path by now, and then no new checkpoint could
        # be loaded, while pruning deletes the ones that can.
        storable.check(content, "state()")
        self.beat("save", step)
        manifest = dict.fromkeys(checkpoints.FIELDS) | {
            "step": step, "epoch": epoch, "position": 0, "world_size": self.ranks, "why": why,
        }  # fmt: skip
        began, path, fence = time.monotonic(), self.run.checkpoints / f"iter_{step}.pth", self._fence
        try:
            whole = {"state": content, "baton": manifest}
            checkpoint = checkpoints.write(path, whole, manifest, *fence)
            self.on_disk = (step, epoch)
            self.report(
                "checkpoint", step=step, epoch=epoch, path=path.name, bytes=checkpoint.manifest["bytes"],
                seconds=round(time.monotonic() - began, 3), why=why,
            )  # fmt: skip
            checkpoints.prune(self.run.checkpoints, -1, *fence)
        except OSError as error:
            self._trouble = str(error)
            self.report("checkpoint_failed", step=step, reason=self._trouble)
            return self.on_disk == (step, epoch)
        return True

    @property
    def _fence(self) -> tuple[Any, int]:
        return self.run.job, self.start

    def check_fence(self) -> None:
        """Raises FencedOff, which ends this start, if a later start of the run is under way."""
        checkpoints.check_fence(*self._fence)

    # ----------------------------------------------------------------------------------------------- ending

    def _leave(self, step: int, state: State, epoch: int) -> NoReturn:
        """Tries to save for half of the time between the warning and the time limit, then exits."""
        deadline = time.monotonic() + self.session.request.cluster.grace / 2
        content = state()
        while not self.save(step, lambda: content, epoch=epoch, why="preemption"):
            if time.monotonic() > deadline:
                break
            time.sleep(RETRY)
        self._barrier()
        self.preempted(*self.on_disk)

    def preempted(self, step: int, epoch: int = 0) -> NoReturn:
        """Exits, after saving because this rank was asked to, so that a later start continues. All ranks must
        call it; `end_step` does."""
        self.report("preempted", step=step, epoch=epoch)
        leave()

    def finish(self, step: int, state: State | None = None, *, epoch: int = 0) -> None:
        """Ends the training: saves the final state, and reports that it is finished. Nothing but the end of
        the program may follow. Without this call, exit code 0 counts as a failure.

        Raises OSError if the state could not be saved.
        """
        if state is not None and not self.save(step, state, epoch=epoch, why="end"):
            raise OSError(f"the final state, of step {step}, could not be saved: {self._trouble}")
        self._barrier()
        self.report("finished", step=step, epoch=epoch)
        closing()
        self._finished = True
        self.beat("end", step)
        if self.session.control is not None:
            from jobs.engine import distributed

            distributed.part(self.session)

    def _barrier(self) -> None:
        if self.session.control is not None:
            from jobs.engine import distributed

            distributed.barrier(self.session)


def _numbers(scalars: dict[str, Any]) -> dict[str, float | None]:
    return {name: progress.finite(value) for name, value in scalars.items()}
