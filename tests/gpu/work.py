"""Runs of the tests for GPUs: on which device, how large, for how long; and what they find out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from jobs.engine import checkpoints, devices
from jobs.mmseg import compat
from jobs.run import files
from jobs.run.directory import Run
from tests.support import tiny

ON_CPU = os.environ.get("BATON_GPU_ON") == "cpu"
"""The same tests, small, where no GPU is wanted."""
DEVICE = devices.kind()
GPUS = devices.count()

RECIPE, TRANSFORMER = "tests/gpu/configs/recipe.py", "tests/gpu/configs/transformer.py"
CNN = "tests/support/configs/tiny.py"

Show = Callable[[str, str], None]
"""conftest.show"""

SECONDS = float(os.environ.get("BATON_GPU_SECONDS", "500"))
"""After so many no further test begins."""
BEGAN_AT = "BATON_GPU_BEGAN"
BEGAN = float(os.environ.get(BEGAN_AT) or time.time())

KERNELS_AT = "BATON_GPU_KERNELS"
"""Environment variable: a folder for what the recipe's compiled networks leave."""

ROOM = 12 * 2**30
"""Bytes of a GPU's memory that one test may need: the recipe at full size, in two processes."""


def at_once() -> int:
    """How many tests this machine has room for at a time."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(5, cores // 3, devices.memory(0) // ROOM) if GPUS else min(2, cores))


def make_data(root: Path, train: int = 24, val: int = 2) -> Path:
    """The pictures of tiny.py; where the recipe trains at full size, as large as VOC's, and the middle of
    them: with less background than RandomCrop's `cat_max_ratio` lets pass, as most of VOC's have."""
    tiny.make_data(root, train, val)
    if not ON_CPU:
        for path in root.rglob("*.[jp][pn]g"):
            picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert picture is not None, path
            cv2.imwrite(
                str(path), cv2.resize(picture[8:53, 10:70], (500, 375), interpolation=cv2.INTER_NEAREST)
            )
    return root


def by_iteration(steps: int, save_every: int = 1000, save_begin: int = 0) -> dict[str, Any]:
    """Overrides (__ for dots): so many steps, no validation."""
    return {
        "train_cfg": {"_delete_": True, "type": "IterBasedTrainLoop", "max_iters": steps},
        "param_scheduler": [{"type": "PolyLR", "eta_min": 1e-4, "begin": 0, "end": steps, "by_epoch": False}],
        "val_dataloader": None, "val_cfg": None, "val_evaluator": None,
        "default_hooks__checkpoint__by_epoch": False,
        "default_hooks__checkpoint__interval": save_every,
        "default_hooks__checkpoint__save_begin": save_begin,
        "default_hooks__checkpoint__save_best": None,
        "log_processor__by_epoch": False,
    }  # fmt: skip


def make_run(path: Path, data: Path, config: str, steps: int, hooks: Any = (), **settings: Any) -> Run:
    """A run that tests/interrupting.py can interrupt."""
    modules = {"imports": ["tests.interrupting", "tests.gpu.compiling"], "allow_failed_imports": False}
    own = {"custom_imports": modules, "custom_hooks": [{"type": "Interrupt"}, *hooks]}
    return tiny.make_run(path, data, config, **by_iteration(steps) | own | settings)


def share_kernels(run: Run) -> Run:
    """Has it find what another run has compiled, so that what is measured compiles nothing."""
    if folder := os.environ.get(KERNELS_AT):
        (run.path / files.COMPILED()).symlink_to(folder)
    return run


def last(run: Run) -> dict[str, Any]:
    """What must not depend on interruptions, of the newest checkpoint."""
    newest = checkpoints.newest(run.checkpoints)
    assert newest is not None, tiny.log_of(run, 1)
    content = compat.load(newest.path)
    parts = ("state_dict", "optimizer", "param_schedulers", "ema_state_dict")
    return {key: content[key] for key in parts if key in content} | {"step": content["baton"]["step"]}


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of two runs' weights, relative to the largest weight of its tensor. Without the
    running statistics of batch norm, which ranks have each their own of."""
    largest = 0.0
    for name, a in one["state_dict"].items():
        b = other["state_dict"][name]
        if a.is_floating_point() and "running_" not in name:
            scale = max(float(a.abs().max()), 1e-12)
            largest = max(largest, float((a - b).abs().max()) / scale)
    return largest
