"""A hook that holds a training at a step until the cluster has done something to it, or breaks a rank there.

`plan` lists what happens: {"step": 4, "rank": 2, "do": ...}; without `rank` on all ranks, and only the first
time that a rank comes to that step. `do` is hold: wait until asked to leave (or for the end); slow: as hold,
and then never finish the save; raise, exit, kill, segv: die of it. The file job/held-RANK in the run
directory says that the place was reached.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class Fault(Hook):
    def __init__(self, plan: list[dict[str, Any]]) -> None:
        rank = int(os.environ["RANK"])
        self.held = Path(os.environ["BATON_RUN"]) / "job" / f"held-{rank}"
        mine = [fault for fault in plan if fault.get("rank") in (None, rank) and not self.held.exists()]
        self.faults = {fault["step"]: fault["do"] for fault in mine}

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        do = self.faults.pop(runner.iter + 1, None)
        if do is None:
            return
        self.held.touch()
        if do == "raise":
            raise ValueError("a bad batch")
        if do == "exit":
            sys.exit(3)
        if do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "segv":
            ctypes.string_at(0)
        if do == "slow":
            runner.survival.saver.save = never_ends
        while not runner.survival.preempted.asked:
            time.sleep(0.02)


def never_ends(*_: Any, **__: Any) -> None:
    threading.Event().wait()
