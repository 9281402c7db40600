"""Hooks (custom_hooks of a config) that measure a training from within, the same on both sides."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from torch.utils.data import dataloader

from jobs.engine import devices
from jobs.run.exit_codes import RESUME

READY = 0.001
"""Seconds within which a batch that is there is in the training's hands."""


@HOOKS.register_module()
class FirstStep(Hook):
    """Writes the seconds from BEGAN (in the environment) to the end of the first step, and ends the process:
    what is measured is over."""

    priority = "LOWEST"

    def __init__(self, result: str) -> None:
        self.result = Path(result)

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        seconds = time.time() - float(os.environ["BEGAN"])
        self.result.write_text(json.dumps({"seconds": seconds, "step": runner.iter + 1}))
        # As after a preemption: an end that supervisors take for one.
        os._exit(RESUME)


@HOOKS.register_module()
class Steps(Hook):
    """Writes when each step began, and what each save kept the training's thread waiting for (`saves`:
    [step, seconds]). mmengine's save is made as durable as ours: an fsync of file and directory."""

    priority = "VERY_HIGH"

    def __init__(self, result: str) -> None:
        self.result = Path(result)
        self.times: list[float] = []
        self.saves: list[tuple[int, float]] = []
        self.bytes: list[int] = []

    def before_train(self, runner: Any) -> None:
        survival = getattr(runner, "survival", None)
        if survival is None:
            self.watch_plain(runner)
        else:
            self.watch(survival.saver)

    def watch(self, saver: Any) -> None:
        save = saver.save

        def timed(runner: Any, why: str, **options: Any) -> None:
            begin = time.perf_counter()
            save(runner, why, **options)
            if options.get("wait") is None:
                self.saves.append((runner.iter, time.perf_counter() - begin))

        saver.save = timed

    def watch_plain(self, runner: Any) -> None:
        save = runner.save_checkpoint

        def timed(out_dir: str, filename: str, *arguments: Any, **options: Any) -> None:
            begin = time.perf_counter()
            save(out_dir, filename, *arguments, **options)
            path = os.path.join(out_dir, filename)
            for place in (path, out_dir):
                descriptor = os.open(place, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
            self.saves.append((runner.iter + 1, time.perf_counter() - begin))
            self.bytes.append(os.path.getsize(path))

        runner.save_checkpoint = timed

    def before_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:  # noqa: ARG002
        self.times.append(time.perf_counter())

    def after_train(self, runner: Any) -> None:  # noqa: ARG002
        content = {"times": self.times, "saves": self.saves, "bytes": self.bytes}
        self.result.write_text(json.dumps(content))


@HOOKS.register_module()
class Measure(Steps):
    """`Steps`, and of the `counted` steps after the first `warm_up`: seconds a step (the device waited for at
    both ends), the share of them in which the training waited for its next batch, and how many of them did
    for more than READY, the share in which the device computed (of five steps more, by torch's profiler; null
    on the CPU), the most memory that tensors had; and the seconds from BEGAN, if it is set, to the end of the
    first step.

    `tf32`: whether convolutions, and whether products of matrices, may be in TF32; None as torch has it."""

    def __init__(
        self, result: str, warm_up: int, counted: int, tf32: tuple[bool, bool] | None = None
    ) -> None:
        super().__init__(result)
        if tf32 is not None:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
        self.warm_up, self.counted = warm_up, counted
        self.found: dict[str, Any] = {"busy": None}
        self.steps, self.began = 0, 0.0
        self.waits: list[float] = []
        self.profiler: Any = None

    def before_train(self, runner: Any) -> None:
        super().before_train(runner)
        # What either side's loop takes its batches from.
        loader: Any = dataloader._BaseDataLoaderIter
        plain = loader.__next__

        def timed(iterator: Any) -> Any:
            begin = time.perf_counter()
            batch = plain(iterator)
            self.waits.append(time.perf_counter() - begin)
            return batch

        loader.__next__ = timed

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:  # noqa: ARG002
        self.steps += 1
        done = self.steps - self.warm_up
        if self.steps == 1 and "BEGAN" in os.environ:
            devices.synchronise()
            self.found["first"] = time.time() - float(os.environ["BEGAN"])
        if done == 0:
            devices.synchronise()
            self.began = time.perf_counter()
        elif done == self.counted:
            devices.synchronise()
            seconds = time.perf_counter() - self.began
            waits = self.waits[self.warm_up : self.steps]
            self.found |= {"step": seconds / self.counted, "wait": sum(waits) / seconds}
            self.found["waited"] = sum(wait > READY for wait in waits)
            self.found["peak"] = devices.peak_bytes()
            self.profile()
        elif done == self.counted + 5 and self.profiler is not None:
            devices.synchronise()
            # Not with what the profiler then takes to put together what it has seen.
            seconds = time.perf_counter() - self.began
            self.profiler.stop()
            self.found["busy"] = self.computed() / seconds

    def profile(self) -> None:
        from torch import profiler

        if devices.kind() == "cuda":
            self.profiler = profiler.profile(activities=[profiler.ProfilerActivity.CUDA])
            self.profiler.start()
            self.began = time.perf_counter()

    def computed(self) -> float:
        """Seconds in which at least one kernel ran."""
        spans = sorted(
            (event.time_range.start, event.time_range.end)
            for event in self.profiler.events()
            if "CUDA" in str(event.device_type)
        )
        total, until = 0.0, 0.0
        for start, end in spans:
            total += max(0.0, end - max(start, until))
            until = max(until, end)
        return total / 1e6

    def after_train(self, runner: Any) -> None:  # noqa: ARG002
        self.result.write_text(json.dumps(self.found | {"saves": self.saves, "bytes": self.bytes}))


@HOOKS.register_module()
class Turns(Hook):
    """Trains a block of steps whenever it is this training's turn, and waits in between (`turns.py`): several
    trainings that are up at once take turns on a machine, each alone while it is measured.

    The first `warm_up` steps are free. Of each block the first `untimed` steps are not counted: the other
    training's data loaders still fill up in them, and this one's are drained to where they usually are.
    """

    priority = "VERY_HIGH"

    def __init__(self, address: str, warm_up: int, untimed: int, timed: int) -> None:
        self.address, self.warm_up, self.untimed, self.timed = address, warm_up, untimed, timed
        self.parent: Any = None
        self.began = 0.0

    def before_train(self, runner: Any) -> None:
        self.first = runner.iter
        if runner.rank == 0:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(self.address)
            self.parent = connection.makefile("rw")

    def before_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        # The other ranks wait in the next step's reduction.
        if self.parent is None:
            return
        done = runner.iter - self.first - self.warm_up
        place = done % (self.untimed + self.timed)
        if done >= 0 and place == 0:
            self.parent.write(f"{(time.perf_counter() - self.began) / self.timed}\n")
            self.parent.flush()
            if not self.parent.readline():
                raise RuntimeError("the benchmark has ended")
        elif done >= 0 and place == self.untimed:
            self.began = time.perf_counter()


@HOOKS.register_module()
class Preload(Hook):
    """Before each block of `block` steps after the first `warm_up` (with the second all histories exist): if
    the block's number is among `full`, fills the message hub's histories as if `values` iterations had been
    logged, and else empties them."""

    priority = "LOWEST"

    def __init__(self, values: int, warm_up: int, block: int, full: list[int]) -> None:
        self.values, self.warm_up, self.block, self.full = values, warm_up, block, full
        self.steps = 0

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        self.steps += 1
        number, place = divmod(self.steps - self.warm_up, self.block)
        if number < 0 or place:
            return
        hub, count = runner.message_hub, self.values if number in self.full else 1
        for key, buffer in hub.log_scalars.items():
            values = np.full(count, float(buffer.current()))
            hub.log_scalars[key] = HistoryBuffer(values, np.ones(count), max_length=buffer.max_length)
