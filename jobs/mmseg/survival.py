"""What happens between two steps and around a validation, where a preempted run saves and leaves."""

from __future__ import annotations

import gc
import sys
import threading
from typing import Any

from jobs.engine import delivery, distributed, preemption
from jobs.mmseg import state
from jobs.mmseg.sampling import VALIDATION, mix, seed_everything
from jobs.run.exit_codes import SUPERSEDED


class Survival:
    def __init__(self, runner: Any, preempted: preemption.Preemption, saver: Any, metrics: Any, heart: Any):
        self.runner, self.preempted, self.saver, self.metrics, self.heart = (
            runner,
            preempted,
            saver,
            metrics,
            heart,
        )
        self.session = runner.session
        self.agreement = preemption.Agreement(self.session.control)
        self.together: preemption.LeaveTogether | None = None
        if self.session.ranks > 1:
            store = distributed.open_store(self.session.ranks, False, distributed.TIMEOUT)
            self.together = preemption.LeaveTogether(
                store, distributed.store_key(), self.session.ranks, self.session.rank
            )
        self.leave, self.save = False, False
        self.ending = threading.Lock()

    # -- the start

    def begin(self) -> bool:
        """Before the first step. Returns whether the validation at the resumed step is still due."""
        gc.freeze()
        gc.enable()
        for loop in (self.runner.train_loop, self.runner.val_loop):
            if loop is not None:
                preemption.outlive(loop.dataloader)
                delivery.through_buffers(loop.dataloader)
        # After `before_train`, in which hooks may set attributes at every start.
        self.runner.kept = state.kept_by(self.runner)
        if self.runner.initialised:
            self.runner.kept.count_from(*self.runner.initialised)
            self.runner.initialised = None
        if saved := (self.runner.resumed or {}).get("kept"):
            self.runner.kept.restore(saved)
            loop = self.runner.train_loop
            anew = loop.by_epoch and loop.position == 0 and not loop.dataloader.persistent_workers
            self.runner.kept.restore_dataset(saved, anew)
        if self.runner.resumed:
            self.runner.kept.give_gradients(self.runner.resumed["gradients"])
        if self.session.main:
            state.check_hooks(self.runner)
        self.saver.on_disk = (self.runner.train_loop.iter, self.runner.train_loop.epoch)
        # Preempted while starting: there is nothing new to save.
        (leave,) = self.agreement.now(self.preempted.asked)
        if leave:
            self._leave()
        return bool((self.runner.resumed or {}).get("validation_due"))

    # -- a step

    def step_begins(self) -> None:
        self.agreement.propose(self.preempted.asked, self.saver.due())

    def step_ends(self) -> None:
        self.leave, self.save = self.agreement.answer()
        step = self.runner.train_loop.iter
        self.heart.beat("train", step)
        self.metrics.step_done()
        self.saver.check_fence()

    def between_steps(self, validation_due: bool = False) -> None:
        """After a step that is not the last of an epoch."""
        loop = self.runner.train_loop
        by_epoch = self.saver.settings.by_epoch
        asked = not by_epoch and self._asked(loop.iter, loop.iter == loop.max_iters)
        self._boundary(asked, validation_due)

    def epoch_ended(self, validation_due: bool) -> None:
        """After the last step of an epoch and its hooks."""
        loop = self.runner.train_loop
        state.average_statistics(self.runner, self.session)
        self.metrics.epoch_done()
        asked = self._asked(loop.epoch, loop.epoch == loop.max_epochs) or (
            not self.saver.settings.by_epoch and self._asked(loop.iter, loop.iter == loop.max_iters)
        )
        self._boundary(asked, validation_due, averaged=True)

    def _asked(self, done: int, at_end: bool) -> bool:
        return self.saver.settings.asks(done) or at_end

    def _boundary(self, asked: bool, validation_due: bool, averaged: bool = False) -> None:
        if validation_due and not averaged:
            state.average_statistics(self.runner, self.session)
        if self.leave:
            self.heart.beat("save", self.runner.train_loop.iter)
            patience = self.saver.patience
            self.saver.save(
                self.runner, "preemption", asked=asked, validation_due=validation_due, wait=patience
            )
            self._leave()
        elif asked or validation_due or self.save:
            why = "interval" if asked else "validation" if validation_due else "time"
            self.saver.save(self.runner, why, asked=asked, validation_due=validation_due)

    def _leave(self) -> None:
        """Called on all ranks together: ends this process once rank 0 has written its state."""
        self.saver.check_fence()
        distributed.barrier(self.session)
        self._say_preempted()
        preemption.leave()

    def _say_preempted(self) -> None:
        # At the end of a validation, both threads may get here: the second waits until the process ends.
        self.ending.acquire()
        if self.session.main:
            step, epoch = self.saver.on_disk
            self.session.report("preempted", step=step, epoch=epoch)

    # -- a validation

    def validate(self) -> None:
        loop = self.runner.train_loop
        self.heart.beat("validate", loop.iter)
        seed_everything(mix(loop.plan.seed, VALIDATION, loop.iter))
        elsewhere = self.together.elsewhere if self.together else None
        with self.preempted.validating(self._leave_validation, elsewhere):
            self.runner.val_loop.run()
        metrics = self.metrics.validation_done(self.saver.settings)
        self.saver.validated(loop.iter, metrics)
        (leave,) = self.agreement.now(self.preempted.asked)
        if leave:
            self.saver.retry_for(self.saver.patience)
            self._leave()

    def _leave_validation(self) -> None:
        """On the listening thread. The state before the validation is saved, or being written."""
        if self.together:
            self.together.go(self._last_words)
        self._last_words()
        preemption.leave()

    def _last_words(self) -> None:
        self.saver.retry_for(self.saver.patience)
        if self.saver.fenced_off:
            print(self.saver.fenced_off, file=sys.stderr)
            preemption.leave(SUPERSEDED)
        self._say_preempted()

    # -- the end

    def end(self) -> None:
        """After the last step and validation. The final state is on disk when this returns."""
        loop = self.runner.train_loop
        self.heart.beat("save", loop.iter)
        self.saver.save(self.runner, "end", asked=True, wait=0.0)
        self.saver.check_fence()
        self.saver.check_finished()
        distributed.barrier(self.session)
        if self.session.main:
            self.session.report("finished", step=loop.iter, epoch=loop.epoch)
        preemption.closing()
        self.heart.beat("end", loop.iter)
