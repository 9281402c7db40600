"""When to save, and how to do it without delaying the training: copied in memory, written by a thread.

Saves happen only at step boundaries, on all ranks together: by the config's own interval, before every
validation, when the Young/Daly interval has passed (interval.py), when the run is preempted, and at the end.
A disk that is full or gone does not end the training: that is reported, and the save retried.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from jobs.engine import checkpoints, interval, snapshots
from jobs.engine.session import Session
from jobs.run import metrics, story
from jobs.supervise.heartbeat import Heartbeat

RETRY = 60.0
"""Seconds before a failed save is retried."""

RETRY_LEAVING = 2.0
"""The same if the ranks wait for it in order to exit."""


@dataclass
class Settings:
    """The config's settings for saving: its CheckpointHook's arguments, and `baton.save_seconds`."""

    interval: int = -1
    by_epoch: bool = True
    save_begin: int = 0
    max_keep_ckpts: int = -1
    save_best: str | None = None
    rule: str | None = None
    seconds: float | None = None
    """Seconds between saves; None for the Young/Daly optimum; 0 for never by time."""

    def asks(self, done: int) -> bool:
        """Whether the config's interval requires a save after `done` epochs (or iterations)."""
        return self.interval > 0 and done >= self.save_begin and (done - self.save_begin) % self.interval == 0

    def metric(self, computed: Collection[str]) -> str | None:
        """The metric that decides the best checkpoint, for a validation that has `computed` these (names
        without an evaluator's prefix); None if it would have to be the first of none."""
        asked = (self.save_best or "").rpartition("/")[2]
        if asked == "auto" or (not asked and metrics.USUAL not in computed):
            return next(iter(computed), None)
        return asked or metrics.USUAL

    def less(self, metric: str | None) -> bool:
        """Whether less of the metric is better."""
        return self.rule == "less" or (self.rule is None and metrics.less_is_better(metric or ""))


class Saver:
    def __init__(
        self,
        session: Session,
        settings: Settings,
        config_digest: str,
        heart: Heartbeat,
        collect: Callable[[Any, Session, dict[str, Any]], dict[str, Any] | None],
    ) -> None:
        """`collect` returns the state of a runner, including the manifest; None on ranks that do not save."""
        self.session, self.settings, self.config_digest = session, settings, config_digest
        self.heart, self.collect = heart, collect
        self.directory = session.run.checkpoints
        self.fence = (session.run.job, session.start)
        self.snapshots = snapshots.Snapshots()
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[checkpoints.Checkpoint | None] | None = None
        self.fenced_off: checkpoints.FencedOff | None = None
        self.saved: tuple[int, int] | None = None
        self.on_disk = (0, 0)
        """The step and epoch from which a resume would start now."""
        self.failed: tuple[Any, ...] | None = None
        """What `_write` could not write, until that or a later state is written."""
        self.trouble = ""
        """Why it could not be written."""
        self.unnoted: tuple[metrics.Figure, checkpoints.Checkpoint, dict[str, float | None]] | None = None
        """The best so far, while `best.json` does not say so yet: the disk may be full."""
        self.noting = threading.Lock()
        """A validation may find a better one while the writing thread notes the one before."""
        self.trying = threading.Lock()
        """During a validation, two threads may want to exit: each has to know how the other's save went."""
        self.patience = session.request.cluster.grace / 2
        """Seconds for which a preempted run tries to save: it must also exit before the time limit."""
        self.cost = 1.0
        self.began = time.monotonic()
        if session.main:
            self.past = interval.past(story.read(session.run.events), session.start)
            self._clear()
        self.next = self._next()

    def _clear(self) -> None:
        try:
            checkpoints.clear(self.directory, *self.fence)
        except OSError as error:
            # Only disk space is lost.
            print(f"half-written checkpoints could not be deleted: {error}", file=sys.stderr, flush=True)

    def _next(self) -> float:
        now, seconds = time.monotonic(), self.settings.seconds
        if seconds is None and self.session.main:
            seconds = interval.optimum(self.cost, self.past.between(now - self.began))
        return now + seconds if seconds else float("inf")

    def due(self) -> bool:
        """Whether it is time to save, by the clock. Only rank 0's answer counts."""
        return self.session.main and time.monotonic() >= self.next and not self.busy()

    def busy(self) -> bool:
        return self.writing is not None and not self.writing.done()

    def save(
        self,
        runner: Any,
        why: str,
        *,
        asked: bool = False,
        validation_due: bool = False,
        wait: float | None = None,
    ) -> None:
        """Saves the state at this step boundary. All ranks must call it.

        `validation_due`: the step's validation is still to come; a resume starts with it. With `wait`, the
        state is on disk afterwards, unless writing failed for that many seconds (`on_disk` says what is).
        """
        loop = runner.train_loop
        if self.saved != (loop.iter, loop.epoch):
            self._begin(runner, why, asked, validation_due, wait is not None)
        elif wait is not None:
            self.finish()
            self._again()
        if wait is not None:
            self.retry_for(wait)

    def _begin(self, runner: Any, why: str, asked: bool, validation_due: bool, wait: bool) -> None:
        loop = runner.train_loop
        began = time.monotonic()
        manifest = {
            "step": loop.iter,
            "epoch": loop.epoch,
            "position": loop.position,
            "world_size": self.session.ranks,
            "global_batch": loop.plan.batch,
            "config_digest": self.config_digest,
            "why": why,
            "asked": asked,
            "validation_due": validation_due,
        }
        content = self.collect(runner, self.session, manifest)
        self.saved = (loop.iter, loop.epoch)
        if content is None:
            return
        # The last snapshot's memory is free once it is written.
        self.finish()
        copy = self.snapshots.take(content)
        name = f"epoch_{loop.epoch}.pth" if loop.by_epoch and loop.position == 0 else f"iter_{loop.iter}.pth"
        stall = time.monotonic() - began
        # The writing thread sets it again, possibly before `submit` returns.
        self.next = float("inf")
        self.writing = self.thread.submit(self._write, name, copy, manifest, began, None if wait else stall)
        if wait:
            self.finish()
        self.cost = time.monotonic() - began if wait else stall

    def _write(
        self, name: str, copy: Any, manifest: dict[str, Any], began: float, stall: float | None
    ) -> checkpoints.Checkpoint | None:
        session = self.session
        try:
            checkpoint = checkpoints.write(self.directory / name, copy, manifest, *self.fence)
        except checkpoints.FencedOff as error:
            self.fenced_off, self.failed = error, None
            return None
        except OSError as error:
            self.trouble = str(error)
            session.report("checkpoint_failed", step=manifest["step"], reason=self.trouble)
            self.failed = (name, copy, manifest, began, stall)
            self.next = time.monotonic() + RETRY
            return None
        self.on_disk, self.failed = (manifest["step"], manifest["epoch"]), None
        session.report(
            "checkpoint",
            step=manifest["step"],
            epoch=manifest["epoch"],
            path=name,
            bytes=checkpoint.manifest["bytes"],
            seconds=round(time.monotonic() - began, 3),
            why=manifest["why"],
            stall_seconds=None if stall is None else round(stall, 4),
        )
        try:
            self._note_best()
            checkpoints.prune(self.directory, self.settings.max_keep_ckpts, *self.fence)
            self.next = self._next()
        except checkpoints.FencedOff as error:
            self.fenced_off = error
        except OSError as error:
            # What should have been deleted is left to the next time.
            session.report("checkpoint_failed", step=manifest["step"], reason=f"pruning: {error}")
            self.next = self._next()
        return checkpoint

    def finish(self) -> checkpoints.Checkpoint | None:
        """Waits for the write in progress. Returns its checkpoint; None if there is none, or it failed."""
        if self.writing is None:
            return None
        if self.busy():
            # Whatever the ranks were doing, from here on they wait for the disk.
            self.heart.beat("save", self.saved[0] if self.saved else 0)
        return self.writing.result()

    def retry_for(self, seconds: float) -> None:
        """Waits for the write in progress; if it fails, retries for so many seconds."""
        end = time.monotonic() + seconds
        with self.trying:
            self.finish()
            while self.failed and time.monotonic() < end:
                time.sleep(RETRY_LEAVING)
                self._again()

    def _again(self) -> None:
        if self.failed:
            self.writing = self.thread.submit(self._write, *self.failed)
            self.finish()

    def check_finished(self) -> None:
        """Raises OSError if the last saved state, or the note of the best one, is not on disk."""
        if self.failed:
            raise OSError(f"the final state could not be saved as {self.failed[0]}: {self.trouble}")
        self._note_best()

    def check_fence(self) -> None:
        """Raises FencedOff if a later start of the run has been noticed."""
        if self.fenced_off:
            raise self.fenced_off

    def validated(self, step: int, found: dict[str, float | None]) -> None:
        """Handles a validation's result: notes that step's checkpoint, saved before it, if it is the best."""
        metric = self.settings.metric(found)
        if not self.session.main or metric is None or (value := found.get(metric)) is None:
            return
        self.finish()
        new = metrics.Figure(metric, value, step, self.settings.less(metric))
        try:
            checkpoint = next((c for c in checkpoints.listed(self.directory) if c.step == step), None)
            with self.noting:
                # If the note is damaged, this is from the events, which already include this validation.
                best = self.unnoted[0] if self.unnoted else checkpoints.best_figure(self.directory)
                if checkpoint and (new.beats(best) or (best is not None and best.step == step)):
                    self.unnoted = new, checkpoint, found
            self._note_best()
        except OSError as error:
            self.session.report("checkpoint_failed", step=step, reason=f"best.json: {error}")

    def _note_best(self) -> None:
        with self.noting:
            if self.unnoted:
                figure, checkpoint, found = self.unnoted
                checkpoints.check_fence(*self.fence)
                checkpoints.mark_best(self.directory, checkpoint, figure.metric, found)
                self.unnoted = None
