"""A hook that leaves marks in a trace of system calls where epochs begin; named by `custom_imports`."""

from __future__ import annotations

import os
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Marks(Hook):
    priority = "VERY_HIGH"

    def before_train_epoch(self, runner: Any) -> None:
        os.path.exists(f"/mark/epoch-{runner.epoch}/")
