"""Any PyTorch training as a run of Baton: the worker's side of the protocol (docs/worker-protocol.md).

    from jobs.worker import Worker

    with Worker() as worker:            # from here on a preemption is heard
        device = worker.join()          # the ranks' process group
        kept = worker.load()            # the newest whole checkpoint's state; None at first
        ...
        for step in range(done + 1, steps + 1):
            worker.begin_step()
            ...                         # forward, backward, optimizer
            worker.end_step(step, state, save=step % 100 == 0)
        worker.finish(step, state)

`state` is a function that returns what a resume needs, as tensors and plain Python values. Imports no torch
before `join`, `load` or `save`. examples/plain_pytorch.py is a whole training.
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
"""Seconds between two tries to save of a preempted run whose disk is full."""

State = Callable[[], dict[str, Any]]


class Worker:
    """One rank of a training. A context: an error in its block ends all ranks and is the one that status
    shows; `UserError` ends the run as the user's mistake, which no further start could cure."""

    def __init__(self) -> None:
        """Ends the process with exit code 2 where no supervisor of Baton's has started it."""
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
        faulthandler.enable(2)  # where it was when native code ends it
        try:
            self.session: Session = from_environment(self.run)
        except UserError as error:
            endings.end(error, self.run, self.start, self.rank, self.preemption)
        self.ranks, self.main = self.session.ranks, self.session.main
        self.seed = self.session.request.seed
        """`--seed`. Draw from it and the step's number alone, and a resume draws the same."""
        self.steps: int | None = None
        """How many there will be, if you say so: for the time that status shows as left."""
        self.on_disk = (0, 0)
        """Step and epoch that a resume would begin with now, as far as rank 0 knows."""
        self._agreement = Agreement(None)
        self._first: tuple[int, float] | None = None
        self._shown = -math.inf
        self._scalars: dict[str, float | None] = {}
        self._finished = False
        self._trouble = ""
        self._heart = Heartbeat()
        # The supervisor has kept what came before this.
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
        """Makes torch's default process group of all ranks, where there are several: NCCL on GPUs, gloo
        without. Returns the device, cuda (this rank's GPU is the current one) or cpu."""
        from jobs.engine import distributed

        distributed.join(self.session)
        self._agreement = Agreement(self.session.control)
        return self.session.device

    def load(self) -> dict[str, Any] | None:
        """The state of the newest whole checkpoint, its tensors on the CPU; None where there is none yet. All
        ranks must call it, after `join`.

        Raises UserError if there are checkpoints but none that is whole, or the newest holds more than data.
        """
        from jobs.engine import distributed, safe_load

        found = checkpoints.newest(self.run.checkpoints, self.session.report) if self.main else None
        if self.main:
            with contextlib.suppress(OSError):  # only room is lost
                checkpoints.clear(self.run.checkpoints, self.run.job, self.start)
        name, step, epoch = distributed.everywhere(
            self.session, (found.path.name, found.step, found.epoch) if found else ("", 0, 0)
        )
        if not name:
            return None
        # Copied: what is loaded is mapped from the file, which will be pruned.
        state = copy.deepcopy(safe_load.load_own(self.run.checkpoints / name)["state"])
        self.on_disk = (step, epoch)
        if self.main:
            self.session.report("resumed", step=step, epoch=epoch, checkpoint=name)
        return dict(state)

    # --------------------------------------------------------------------------------------------- at work

    @property
    def asked(self) -> bool:
        """Whether this rank was asked to leave. Only `end_step` knows of the others."""
        return self.preemption.asked

    def beat(self, phase: str, step: int) -> None:
        """A sign of life, wherever a step takes long. `phase`: start, train, validate, save or end."""
        self._heart.beat(phase, int(step))

    def begin_step(self) -> None:
        """The ranks begin to agree whether to leave, beside the step's computation."""
        self._agreement.propose(self.preemption.asked)

    def end_step(self, step: int, state: State, *, epoch: int = 0, save: bool = False) -> None:
        """After step number `step`, counted from 1: if a rank was asked to leave, all save and leave, and
        this does not return. `save`, the same on all ranks: save anyway.

        Raises FencedOff where a later start of the run is under way; let it through.
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
        """Scalars of a step, for status, the report and metrics.jsonl. `kind`: train or val.

        What counts as a number here and elsewhere: Python's, NumPy's, and tensors of one element."""
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
        """What a validation of this step has found, on rank 0; the others' words are passed over. `metric`,
        the first unless it is named, is the one that the run goes by, `less` whether less of it is better (by
        default of what is called a loss), `seconds` how long it took.

        Raises ValueError if `metric` is none of the scalars.
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
            loss=self._scalars.get("loss"), lr=self._scalars.get("lr"), phase="train",
        )  # fmt: skip

    # ----------------------------------------------------------------------------------------------- saving

    def save(self, step: int, state: State, *, epoch: int = 0, why: str = "interval") -> bool:
        """Saves the state of this step, whole or not at all; all ranks must call it. Whether it is on disk
        (rank 0's answer counts): a full disk costs a checkpoint, not the training.

        Raises UserError for a state that could not be loaded again."""
        step, epoch, content = int(step), int(epoch), state()
        if not self.main or self.on_disk == (step, epoch):
            return True
        from jobs.engine import storable

        # Each time: what was None at the first save may be a Path by now, and what is saved from then on
        # could not be loaded, while pruning takes what could.
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
        """Raises FencedOff, which ends this start, if a later one of the run is under way."""
        checkpoints.check_fence(*self._fence)

    # ----------------------------------------------------------------------------------------------- ending

    def _leave(self, step: int, state: State, epoch: int) -> NoReturn:
        """Tries to save for half of the time that there is between a warning and the time limit."""
        deadline = time.monotonic() + self.session.request.cluster.grace / 2
        content = state()
        while not self.save(step, lambda: content, epoch=epoch, why="preemption"):
            if time.monotonic() > deadline:
                break
            time.sleep(RETRY)
        self._barrier()
        self.preempted(*self.on_disk)

    def preempted(self, step: int, epoch: int = 0) -> NoReturn:
        """Ends this process, which was asked to leave and has saved, so that a later start goes on. All ranks
        must call it; `end_step` does."""
        self.report("preempted", step=step, epoch=epoch)
        leave()

    def finish(self, step: int, state: State | None = None, *, epoch: int = 0) -> None:
        """The training is finished: saves the final state, and says so. Nothing but the end of the program
        may follow. Without this call an exit code of 0 counts as a failure.

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
