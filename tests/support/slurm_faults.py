"""What holds a training or an inference until the cluster has done something to it, or break a rank.

`Fault` does so at a step that is known beforehand. `plan` lists what happens: {"step": 4, "rank": 2, "do":
...}; without `rank` on all ranks, and only the first time that a rank comes to that step. `do` is hold: wait
until asked to leave (or for the end); slow: as hold, and then never finish the save; raise, exit, kill, segv,
mistake (one of the user's): die of it. The file job/held-RANK in the run directory says that the place was
reached.

`HeldImages` holds an inference.

`Chaos` does what the file job/faults.json asks for, one fault after the other, each in a later start than the
one before (benchmarks/chaos.py).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS

from jobs.engine import checkpoints
from jobs.run.directory import write_atomically
from jobs.run.errors import UserError


@HOOKS.register_module(force=True)
class Fault(Hook):
    def __init__(self, plan: list[dict[str, Any]]) -> None:
        rank = int(os.environ["RANK"])
        self.held = Path(os.environ["BATON_RUN"]) / "job" / f"held-{rank}"
        # Which has struck only that file says: what a hook changes in itself is saved with the run.
        self.faults = {fault["step"]: fault["do"] for fault in plan if fault.get("rank") in (None, rank)}

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        do = self.faults.get(runner.iter + 1)
        if do is None or self.held.exists():
            return
        self.held.touch()
        die(do)
        if do == "slow":
            runner.survival.saver.save = never_ends
        while not runner.survival.preempted.asked:
            time.sleep(0.02)


def never_ends(*_: Any, **__: Any) -> None:
    threading.Event().wait()


def die(how: str) -> None:
    """Ends this process in one of the ways in which a rank dies; no-op for any other word."""
    if how == "raise":
        raise ValueError("a bad batch")
    if how == "mistake":
        raise UserError("a bad mask")
    if how == "exit":
        sys.exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "segv":
        ctypes.string_at(0)


@TRANSFORMS.register_module(force=True)
class HeldImages(BaseTransform):
    """A job's first start waits, until it is asked to leave, before any image of a folder with 00.jpg,
    01.jpg, … but the `first` ones."""

    def __init__(self, first: int) -> None:
        self.first = first

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if not int(os.environ.get("SLURM_RESTART_COUNT", "0")):
            leave: Any = signal.getsignal(signal.SIGTERM)  # jobs/infer/__main__.py: a method of its Leave
            while int(Path(results["img_path"]).stem) >= self.first and not leave.__self__.asked():
                time.sleep(0.02)
        return results


@HOOKS.register_module(force=True)
class Chaos(Hook):
    """The faults in job/faults.json, in order: {"number", "place": start | step | validation | save,
    "step", "rank", "slack", "do", "phase"}. A fault comes before step `step`, or in the first validation or
    save after that, or before the first step of a start; only in a start later than the one that the fault
    before it struck, whose number job/struck-NUMBER holds.

    `do` of raise, exit, kill, segv: `rank` dies of it (in a save rank 0, at `phase` of the write), once: the
    file job/struck-NUMBER says so. `do` of wait: the ranks go on for at most `slack` steps and wait there for
    what comes from outside; the files job/there-NUMBER-RANK say that the place was reached.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ["RANK"])
        self.start = int(os.environ["BATON_START"])
        self.job = Path(os.environ["BATON_RUN"]) / "job"

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        if fault := self.asked("start"):
            self.strike(runner, fault, True)
        fault = self.asked("step", runner.iter + 1)
        if fault:
            self.strike(runner, fault, runner.iter + 1 - fault["step"] >= fault["slack"])
        if self.rank == 0 and (fault := self.asked("save", runner.iter + 1)):
            self.break_save(fault)

    def after_val_iter(
        self,
        runner: Any,
        batch_idx: int,  # noqa: ARG002
        data_batch: Any = None,  # noqa: ARG002
        outputs: Any = None,  # noqa: ARG002
    ) -> None:
        if fault := self.asked("validation", runner.iter):
            self.strike(runner, fault, True)

    def asked(self, place: str, step: int | None = None) -> dict[str, Any] | None:
        """The fault that is due at this place and has not struck yet."""
        while not (self.job / "faults.json").exists():  # until whoever submitted the run has put it there
            time.sleep(0.02)
        before = 0
        for fault in json.loads((self.job / "faults.json").read_text()):
            struck = self.struck(fault["number"])
            if struck is None:
                due = fault["place"] == place and (step is None or step >= fault["step"])
                return dict(fault) if due and before < self.start else None
            before = struck
        return None

    def struck(self, number: int) -> int | None:
        """The start in which that fault struck; None if it has not."""
        try:
            return int((self.job / f"struck-{number}").read_text())
        except FileNotFoundError:
            return None

    def mark_struck(self, number: int) -> None:
        write_atomically(self.job / f"struck-{number}", str(self.start).encode())

    def strike(self, runner: Any, fault: dict[str, Any], wait: bool) -> None:
        number = fault["number"]
        (self.job / f"there-{number}-{self.rank}").touch()
        if fault["do"] != "wait":
            if self.rank == fault["rank"]:
                self.mark_struck(number)
                die(fault["do"])
            return
        while wait and not runner.survival.preempted.asked and self.struck(number) is None:
            time.sleep(0.02)

    def break_save(self, fault: dict[str, Any]) -> None:
        """From here on the next write of a checkpoint ends at the phase asked for."""

        def at_phase(phase: str) -> None:
            if phase == fault["phase"]:
                self.mark_struck(fault["number"])
                die("kill")

        checkpoints.on_phase = at_phase
