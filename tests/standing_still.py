"""A hook that makes rank 1 stand still while STAND_STILL is set: in the first start before a step, in the
second in a DataLoader's worker. Later starts go on."""

from __future__ import annotations

import os
import threading
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

STEP = 8
SAMPLES = 4
"""That a DataLoader's worker of the second start still loads."""


@HOOKS.register_module(force=True)
class StandStill(Hook):
    def __init__(self) -> None:
        stuck = "STAND_STILL" in os.environ and os.environ["RANK"] == "1"
        self.start = int(os.environ["BATON_START"]) if stuck else 0

    def before_train(self, runner: Any) -> None:
        if self.start == 2:
            dataset = runner.train_dataloader.dataset.dataset  # below the one that seeds each sample
            dataset.prepare_data = Loading(dataset.prepare_data)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        if self.start == 1 and runner.iter + 1 == STEP:
            threading.Event().wait()


class Loading:
    def __init__(self, prepare: Any) -> None:
        self.prepare, self.done = prepare, 0

    def __call__(self, index: int) -> Any:
        if self.done == SAMPLES:
            self.never_loads()
        self.done += 1
        return self.prepare(index)

    def never_loads(self) -> None:
        threading.Event().wait()
