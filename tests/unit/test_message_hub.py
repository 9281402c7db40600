"""The message hub's histories stay short however long a run is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer, MessageHub

from jobs.run_directory import Request, Run
from jobs.train import state
from jobs.train.heartbeat import Heartbeat
from jobs.train.metrics import HISTORY, Metrics
from jobs.train.session import Session

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
