"""The visualizer's backends that a training gets: jobs/mmseg/curves.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from jobs.engine.session import Session
from jobs.mmseg import compat
from tests.support import tiny

compat.prepare()

from mmengine.config import Config  # noqa: E402

from jobs.mmseg import curves  # noqa: E402


def test_backends_of_services_give_way() -> None:
    backends = [
        {"type": "LocalVisBackend"}, {"type": "WandbVisBackend", "init_kwargs": {"project": "x"}},
        {"type": "TensorboardVisBackend"}, {"type": "mmengine.MLflowVisBackend"},
    ]  # fmt: skip
    cfg = Config(
        {"visualizer": {"vis_backends": backends}, "default_hooks": {"logger": {"type": "LoggerHook"}}}
    )
    curves.put_in(cfg)
    kinds = [one["type"] for one in cfg.visualizer.vis_backends]
    assert kinds == ["OpenLocal", "ExactTensorboard", "ForTrackers"]
    assert cfg.default_hooks.logger.log_metric_by_epoch is False
    own = Config(
        {"visualizer": {"vis_backends": []}, "default_hooks": {"logger": {"log_metric_by_epoch": True}}}
    )
    curves.put_in(own)
    assert own.default_hooks.logger.log_metric_by_epoch is True
    assert own.visualizer.vis_backends == []


def test_what_hooks_show_is_kept_in_the_run(tmp_path: Path) -> None:
    run = tiny.make_run(tmp_path / "run", tmp_path)
    session = Session(run, run.request(), 0, 1, 0, 1, start=2, job=None)
    backend = curves.ForTrackers(str(tmp_path))
    curves.continue_from(SimpleNamespace(_vis_backends={"x": backend}), session, None)
    backend.add_image("val/a b.png", np.zeros((4, 5, 3), np.uint8), step=7)
    backend.add_scalar("gradient", np.float32(2.5), 7)
    backend.add_scalars({"a": 1, "b": float("nan")}, 8)
    backend.add_scalars({"loss": 1.0}, 8, file_path="scalars.json")
    assert (run.path / "track/pictures/7/val_a_b.jpg").stat().st_size > 0
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == [
        {"step": 7, "epoch": 0, "start": 2, "kind": "own", "gradient": 2.5},
        {"step": 8, "epoch": 0, "start": 2, "kind": "own", "a": 1.0, "b": None},
    ]


def test_tensorboard_is_on_disk_before_a_checkpoint_is(tmp_path: Path) -> None:
    """Where its writer buffers, as that of an installed TensorFlow does for two minutes."""
    flushed = []
    backend: Any = curves.ExactTensorboard(str(tmp_path))
    runner = SimpleNamespace(visualizer=SimpleNamespace(_vis_backends={"x": backend}))
    curves.Flush().before_save_checkpoint(runner, {})
    assert not list(tmp_path.iterdir()), "there is nothing to flush yet"
    backend._tensorboard = SimpleNamespace(flush=lambda: flushed.append(1))
    curves.Flush().before_save_checkpoint(runner, {})
    curves.Flush().after_val_epoch(runner)
    assert flushed == [1, 1]


def test_tensorboards_file_stays_open(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    summary: Any = SummaryWriter(str(tmp_path))
    curves._keep_open(summary)
    (path,) = tmp_path.iterdir()
    for step in range(3):
        summary.add_scalar("loss", step * 1.5, step)
    summary.flush()
    assert os.fstat(summary.file_writer.event_writer._async_writer._writer._writer.fileno()).st_size > 0
    summary.close()
    read = EventAccumulator(str(path))
    read.Reload()
    assert [(one.step, one.value) for one in read.Scalars("loss")] == [(0, 0.0), (1, 1.5), (2, 3.0)]


def test_another_writer_than_tensorboards_stays_as_it_is(tmp_path: Path) -> None:
    curves._keep_open(SimpleNamespace())
    with open(tmp_path / "f", "wb") as file:  # TensorFlow's has no `filename`, nor has this
        records = SimpleNamespace(_writer=file)
        events = SimpleNamespace(_async_writer=SimpleNamespace(_writer=records))
        curves._keep_open(SimpleNamespace(file_writer=SimpleNamespace(event_writer=events)))
        assert records._writer is file
