"""What a training reports while it runs: metrics.jsonl, progress.json, and events.

Only rank 0 writes. Everything is read from mmengine's message hub, where models, hooks and the optimizer
already leave their numbers; nothing is computed twice.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mmengine.hooks import Hook

from jobs.engine import progress
from jobs.engine.progress import finite
from jobs.engine.saving import Settings
from jobs.engine.session import Session
from jobs.run import files
from jobs.run.errors import MALFORMED, UserError

HISTORY = 1000
"""Values kept per logged scalar. mmengine keeps a million, and copies all of them in every step."""


class Metrics(Hook):
    """Collects validation results, and writes what the run's readers see."""

    priority = "LOWEST"

    def __init__(
        self,
        session: Session,
        heart: Any,
        log_interval: int,
        stood_still: Callable[[], float] = lambda: 0.0,
        stop_at_nan: bool = False,
    ) -> None:
        """`stood_still`: seconds for which this process has been suspended so far; `stop_at_nan`: a loss that
        is not finite ends the run."""
        self.stop_at_nan, self.diverged = stop_at_nan, False
        self.session, self.heart, self.log_interval = session, heart, log_interval
        self.stood_still, self.known_still = stood_still, 0.0
        self.runner: Any = None
        self.validation: dict[str, float | None] = {}
        self.validation_began = 0.0
        self.epoch_began = time.time()
        self.first_step: int | None = None
        self.progress_time = -math.inf
        self.best: dict[str, Any] | None = None

    def before_train(self, runner: Any) -> None:
        self.runner = runner
        self.epoch_began = time.time()
        self.best = read_best(self.session)

    def before_val_epoch(self, runner: Any) -> None:  # noqa: ARG002
        self.validation, self.validation_began = {}, time.time()
        self.progress("validate", force=True)

    def after_val_iter(
        self,
        runner: Any,
        batch_idx: int,  # noqa: ARG002
        data_batch: Any = None,  # noqa: ARG002
        outputs: Any = None,  # noqa: ARG002
    ) -> None:
        self.heart.beat("validate", runner.iter)

    def after_val_epoch(
        self,
        runner: Any,  # noqa: ARG002
        metrics: dict[str, Any] | None = None,
    ) -> None:
        self.validation = numbers(metrics or {})

    # -- called by the loop, between steps

    def step_done(self) -> None:
        runner, session = self.runner, self.session
        buffers = runner.message_hub.log_scalars
        for buffer in buffers.values():
            buffer.max_length = min(buffer.max_length, HISTORY)
        self.forget_suspension()
        if not session.main:
            return
        step = runner.iter
        if self.first_step is None:
            self.first_step = step
            session.report("first_step", step=step, seconds=round(time.time() - session.began, 3))
        self.watch_loss(step)
        if step % self.log_interval == 0 or step == runner.max_iters:
            self.record("train", self.scalars())
        self.progress("train")

    def watch_loss(self, step: int) -> None:
        """Reports, once per start, a loss that is not finite. Raises UserError if the run is to stop then."""
        buffer = self.runner.message_hub.log_scalars.get("train/loss")
        if self.diverged or buffer is None or finite(loss := buffer.current()) is not None:
            return
        self.diverged = True
        self.session.report("not_finite", step=step, loss=str(float(loss)))
        advice = "a lower learning rate, a longer warm-up or optim_wrapper.clip_grad may help"
        print(f"the loss is {float(loss)} at step {step}: {advice}", file=sys.stderr, flush=True)
        if self.stop_at_nan:
            raise UserError(f"the loss is {float(loss)} at step {step} (baton.stop_at_nan): {advice}")

    def forget_suspension(self) -> None:
        """Makes a step during which the process was suspended count as long as the others."""
        if (still := self.stood_still()) == self.known_still:
            return
        self.known_still, stopped = still, still - self.known_still
        if buffer := self.runner.message_hub.log_scalars.get("train/time"):
            values, _ = buffer.data
            others = values[-50:-1]
            values[-1] = np.median(others) if len(others) else max(0.0, values[-1] - stopped)

    def epoch_done(self) -> None:
        runner = self.runner
        scalars = self.scalars()
        if self.session.main:
            self.session.report(
                "epoch",
                epoch=runner.epoch,
                step=runner.iter,
                seconds=round(time.time() - self.epoch_began, 3),
                loss=scalars.get("loss"),
                lr=scalars.get("lr"),
            )
        self.epoch_began = time.time()

    def validation_done(self, settings: Settings) -> dict[str, float | None]:
        """Records the validation that has just finished; returns its metrics."""
        runner = self.runner
        if self.session.main:
            metric = settings.metric(self.validation)
            self.record("val", self.validation)
            self.session.report(
                "validated",
                epoch=runner.epoch,
                step=runner.iter,
                seconds=round(time.time() - self.validation_began, 3),
                metrics={key: value for key, value in self.validation.items() if value is not None},
                metric=metric,
                less=settings.less(metric) or None,
            )
        return self.validation

    # -- writing

    def scalars(self) -> dict[str, float | None]:
        """The latest value of each training scalar in the message hub; None for one that is not finite,
        because JSON has no NaN."""
        buffers = self.runner.message_hub.log_scalars
        return {
            key.removeprefix("train/"): finite(buffer.current())
            for key, buffer in buffers.items()
            if key.startswith("train/")
        }

    def record(self, kind: str, scalars: dict[str, float | None]) -> None:
        runner = self.runner
        progress.record(self.session, kind, runner.iter, runner.epoch, scalars)

    def progress(self, phase: str, force: bool = False) -> None:
        clock = time.monotonic()
        if not self.session.main or (not force and clock - self.progress_time < progress.INTERVAL):
            return
        self.progress_time = clock
        runner, scalars = self.runner, self.scalars()
        done = runner.iter - self.first_step if self.first_step is not None else 0
        progress.show(
            self.session,
            step=runner.iter,
            epoch=runner.epoch,
            max_steps=runner.max_iters,
            max_epochs=runner.max_epochs,
            seconds_per_step=self.seconds_per_step() if done else None,
            loss=scalars.get("loss"),
            lr=scalars.get("lr"),
            phase=phase,
            best=self.best,
        )

    def seconds_per_step(self) -> float | None:
        buffer = self.runner.message_hub.log_scalars.get("train/time")
        return round(float(buffer.mean(50)), 4) if buffer else None


def read_best(session: Session) -> dict[str, Any] | None:
    try:
        record = json.loads((session.run.checkpoints / files.BEST).read_text())
        return {key: record.get(key) for key in ("mIoU", "metric", "value", "step")}
    except (OSError, *MALFORMED):
        return None


def numbers(metrics: dict[str, Any]) -> dict[str, float | None]:
    """The scalars in `metrics`, by name without an evaluator's prefix; None for one that is not finite."""
    return {
        key.rsplit("/", 1)[-1]: finite(value)
        for key, value in metrics.items()
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    }
