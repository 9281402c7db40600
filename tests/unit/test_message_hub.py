"""The message hub's histories stay short however long a run is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer, MessageHub

from jobs.engine.session import Session
from jobs.mmseg import state
from jobs.mmseg.metrics import HISTORY, Metrics
from jobs.run.directory import Request, Run
from jobs.supervise.heartbeat import Heartbeat

VALUES = 264_000


def test_a_history_of_a_whole_run_is_cut_with_the_next_value(tmp_path: Path) -> None:
    hub = MessageHub("long")
    hub.log_scalars["train/loss"] = HistoryBuffer(np.arange(VALUES, dtype=float), np.ones(VALUES))
    hub._resumed_keys["train/loss"] = True
    session = Session(
        Run(tmp_path), Request(name="x", config="", data_root="", created=""),
        rank=0, ranks=1, local_rank=0, local_ranks=1, start=1, job=None,
    )  # fmt: skip
    runner: Any = SimpleNamespace(
        message_hub=hub, iter=VALUES, epoch=200, max_iters=2 * VALUES, max_epochs=400
    )
    metrics = Metrics(session, Heartbeat(), log_interval=50)
    metrics.before_train(runner)
    metrics.step_done()
    hub.update_scalar("train/loss", -1.0)

    values, counts = hub.log_scalars["train/loss"].data
    assert len(values) == len(counts) == HISTORY == 1000
    assert values[-3:].tolist() == [VALUES - 2, VALUES - 1, -1.0]
    # What the next checkpoint holds of it.
    assert [len(part) for part in state.history(hub)["train/loss"]] == [HISTORY, HISTORY]


def test_a_step_that_stood_still_counts_as_long_as_the_others(tmp_path: Path) -> None:
    hub = MessageHub("stopped")
    session = Session(
        Run(tmp_path), Request(name="x", config="", data_root="", created=""),
        rank=1, ranks=2, local_rank=0, local_ranks=1, start=1, job=None,
    )  # fmt: skip
    still = [0.0]
    metrics = Metrics(session, Heartbeat(), 50, lambda: still[0])
    metrics.before_train(SimpleNamespace(message_hub=hub, iter=9, epoch=1))
    for seconds in (0.5, 0.5, 0.5, 40.5, 0.5):
        hub.update_scalar("train/time", seconds)
        still[0] += 40.0 * (seconds > 1)
        metrics.step_done()
    assert metrics.seconds_per_step() == 0.5
