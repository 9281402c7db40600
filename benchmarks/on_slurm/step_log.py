"""The one measure that benchmarks/ettr.py takes of every arm: a hook that writes down when each step was
done, and pads a step to what a device's would take.

Padded, the steps of all arms are equally long and leave the machine's few cores to those that start. The
hook, and nothing else, is in every arm's config; the file is in the environment variable STEP_LOG.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class StepLog(Hook):
    priority = "LOWEST"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last: float | None = None

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        if self.last is None:
            self.last = time.monotonic()

    def after_train_iter(
        self,
        runner: Any,
        batch_idx: int,  # noqa: ARG002
        data_batch: Any = None,  # noqa: ARG002
        outputs: Any = None,  # noqa: ARG002
    ) -> None:
        assert self.last is not None
        time.sleep(max(0.0, self.last + self.seconds - time.monotonic()))
        self.last = time.monotonic()
        line = {"time": time.time(), "step": runner.iter + 1, "pid": os.getpid()}
        with open(os.environ["STEP_LOG"], "a") as file:
            file.write(json.dumps(line) + "\n")
