"""One run, one curve: TensorBoard files across all starts, and what a config sends to other services.

A step that a later start does again replaces the first one (TensorBoard's `purge_step`). What W&B, MLflow
and ClearML show is told them by a process beside the training (launch/track.py): here, their visualizer
backends give way to one that keeps in the run's directory what only a hook knows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.fileio import dump
from mmengine.hooks import Hook
from mmengine.registry import VISBACKENDS
from mmengine.visualization import BaseVisBackend, LocalVisBackend, TensorboardVisBackend
from PIL import Image

from jobs.catalog.supported import name_of
from jobs.engine import progress
from jobs.engine.session import Session
from jobs.mmseg import pictures
from jobs.run import files, trackers
from jobs.run.lines import Lines

OURS = {"TensorboardVisBackend": "ExactTensorboard", "LocalVisBackend": "OpenLocal"}
"""mmengine's backend -> our replacement."""


def kind_of(backend: Any) -> str:
    """The class name of a config's backend; "" for what mmengine will refuse."""
    return name_of(backend.get("type")) if isinstance(backend, dict) else ""


def put_in(cfg: Config) -> None:
    """Puts this module's backends into a config, and logs every scalar by step (by default, mmengine logs
    those of a validation by epoch, which would not continue the curve)."""
    hook = (cfg.get("default_hooks") or {}).get("logger")
    if hook is not None:
        hook.setdefault("log_metric_by_epoch", False)
    kept, sent = [], False
    for backend in cfg.visualizer.vis_backends:
        kind = kind_of(backend)
        sent |= kind in trackers.BACKENDS
        if kind in OURS:
            backend = {**backend, "type": OURS[kind]}
        if kind not in trackers.BACKENDS:
            kept.append(backend)
    cfg.visualizer.vis_backends = [*kept, *([{"type": "ForTrackers"}] if sent else [])]


def continue_from(visualizer: Any, session: Session, step: int | None) -> None:
    """Tells a new visualizer's backends which run this is, and the step from which it resumes (None: from
    scratch)."""
    for backend in visualizer._vis_backends.values():
        if isinstance(backend, ForTrackers):
            backend.session = session
        if isinstance(backend, ExactTensorboard):
            backend.resumed_at = step
            backend.validated = step is not None and _is_validated(session, step)


def _is_validated(session: Session, step: int) -> bool:
    """Whether an earlier start has recorded the validation after this step."""
    try:
        with session.run.metrics.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                    if row["kind"] == "val" and row["step"] == step:
                        return True
                except (ValueError, KeyError, TypeError):
                    continue  # a torn line
    except OSError:
        pass
    return False


@VISBACKENDS.register_module()
class ExactTensorboard(TensorboardVisBackend):
    """mmengine's backend, continued across several starts."""

    resumed_at: int | None = None
    validated = False
    """Whether the validation that a resume repeats (its checkpoint is older) has already been written."""

    def _init_env(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Readers drop what earlier files have from this step on. Only once: after an error (see
        # `runner.guard`), this start's own values must stay.
        purge = None if self.resumed_at is None else self.resumed_at + 1
        if getattr(self, "_tensorboard", None) is not None:
            purge = None
        self._tensorboard = SummaryWriter(self._save_dir, purge_step=purge)
        _keep_open(self._tensorboard)

    def is_written(self, step: int) -> bool:
        return self.validated and step == self.resumed_at

    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        if not self.is_written(step):
            super().add_scalar(name, value, step, **kwargs)

    def add_scalars(self, scalar_dict: dict[str, Any], step: int = 0, *args: Any, **kwargs: Any) -> None:
        if not self.is_written(step):
            super().add_scalars(scalar_dict, step, *args, **kwargs)

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        if not self.is_written(step):
            super().add_image(name, image, step, **kwargs)

    def flush(self) -> None:
        if getattr(self, "_tensorboard", None) is not None:
            self._tensorboard.flush()


def _keep_open(summary: Any) -> None:
    """Makes TensorBoard's writer keep its file open, instead of reopening it for every value. A writer of
    another kind, as with TensorFlow installed, stays as it is."""
    records = summary
    for name in ("file_writer", "event_writer", "_async_writer", "_writer"):
        records = getattr(records, name, None)
    path = getattr(getattr(records, "_writer", None), "filename", None)
    if isinstance(path, str | bytes):
        records._writer = open(path, "ab", buffering=0)  # noqa: SIM115


@VISBACKENDS.register_module()
class OpenLocal(LocalVisBackend):
    """mmengine's backend, but keeps its scalar files open instead of reopening them for every line."""

    def _dump(self, value_dict: dict[str, Any], file_path: str, file_format: str) -> None:
        lines = self.__dict__.setdefault("lines", {})
        if file_path not in lines:
            lines[file_path] = Lines(Path(file_path))
        lines[file_path].append(dump(value_dict, file_format=file_format))


@VISBACKENDS.register_module()
class ForTrackers(BaseVisBackend):
    """Stores for `launch/track.py` what hooks show in addition to the figures in metrics.jsonl: pictures as
    RUN/track/pictures/STEP/NAME.jpg, their own scalars as lines of metrics.jsonl."""

    session: Session

    def _init_env(self) -> None:
        """Nothing has to be opened."""

    @property
    def experiment(self) -> Any:
        return self

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """RUN/config.py has it."""

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **_: Any) -> None:
        """`image` is RGB (H × W × 3, uint8)."""
        folder = self.session.run.path / files.TRACK() / files.TRACK_PICTURES / str(int(step))
        folder.mkdir(parents=True, exist_ok=True)
        plain = re.sub("[^A-Za-z0-9._-]+", "_", name.removesuffix(".jpg").removesuffix(".png"))
        pictures.save(Image.fromarray(image), folder / f"{plain}.jpg")

    def add_scalar(self, name: str, value: Any, step: int = 0, **_: Any) -> None:
        self.record({name: value}, step)

    def add_scalars(
        self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **_: Any
    ) -> None:
        if file_path is None:  # with one it is from mmengine's LoggerHook, whose figures metrics.jsonl has
            self.record(scalar_dict, step)

    def record(self, values: dict[str, Any], step: int) -> None:
        numbers = {name: progress.finite(value) for name, value in values.items()}
        progress.record(self.session, "own", int(step), 0, numbers)


class Flush(Hook):
    """Flushes the backends before a checkpoint is written: readers assume that its steps are recorded."""

    priority = "VERY_LOW"

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        self.flush(runner)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:  # noqa: ARG002
        self.flush(runner)

    def flush(self, runner: Any) -> None:
        for backend in runner.visualizer._vis_backends.values():
            if isinstance(backend, ExactTensorboard):
                backend.flush()
