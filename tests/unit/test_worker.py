"""The library for a training of one's own, without a supervisor."""

from __future__ import annotations

import json
import math
import random
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.engine import checkpoints
from jobs.engine.preemption import Agreement, Preemption
from jobs.engine.session import Session
from jobs.run import events, files
from jobs.run.directory import Request, Run
from jobs.run.errors import UserError
from jobs.supervise.heartbeat import Heartbeat
from jobs.worker import Worker
from launch.observe import history


def made(path: Path, rank: int = 0) -> Worker:
    """One that listens to no signals."""
    run = Run(path)
    run.job.mkdir(parents=True, exist_ok=True)
    request = Request(name="x", config="", data_root="", created="")
    worker: Any = object.__new__(Worker)
    worker.run, worker.start, worker.rank, worker.ranks, worker.main = run, 1, rank, 1, rank == 0
    worker.session = Session(run, request, rank=rank, ranks=1, local_rank=0, local_ranks=1, start=1, job="1")
    worker.on_disk, worker.steps, worker._first, worker._shown = (0, 0), None, None, -math.inf
    worker._scalars, worker._heart, worker._finished = {}, Heartbeat(), False
    assert isinstance(worker, Worker)
    return worker


def told(worker: Worker, name: str) -> list[dict[str, Any]]:
    return [event for event in events.iterate(worker.run.events) if event["event"] == name]


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {"numpy": np.random.get_state(), "python": random.getstate(), "done": {1, 2}, "w": torch.ones(2)}
    assert made(tmp_path).save(7, lambda: state)
    found = made(tmp_path).load()
    assert found
    assert found["done"] == {1, 2}
    np.random.set_state(found["numpy"])
    random.setstate(found["python"])
    assert repr(np.random.get_state()) == repr(state["numpy"])


def test_the_end_of_the_program_may_be_an_exit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sys.exit(0)` in the block, behind the last call, is no error of a rank."""
    monkeypatch.setattr("jobs.worker.closing", lambda: None)  # for all that this process does afterwards
    worker = made(tmp_path)
    worker.finish(7)
    with pytest.raises(SystemExit), worker:
        sys.exit(0)
    assert not list(worker.run.job.glob("error-*"))


def test_why_the_final_state_is_not_on_disk_is_told(tmp_path: Path) -> None:
    worker = made(tmp_path)
    worker.run.checkpoints.write_text("in the way")
    with pytest.raises(OSError, match=f"could not be saved: .*{worker.run.checkpoints}"):
        worker.finish(7, lambda: {"step": 7})


def test_a_state_that_could_not_be_loaded_is_refused(tmp_path: Path) -> None:
    worker = made(tmp_path)
    kept: dict[str, Any] = {"step": 7}
    for kept["mine"], instead in ((deque([1]), "list"), (torch.nn.Linear(1, 1), "its .state_dict")):
        with pytest.raises(UserError, match=rf"^state\(\)\['mine'\]: .*give {instead}\("):
            worker.save(7, lambda: kept)
        # A rank whose state is not written does not judge it.
        assert made(tmp_path, rank=1).save(7, lambda: kept)
    assert not worker.run.checkpoints.exists()
    # Nor at a later one, which would cost the run all that could be loaded.
    assert worker.save(8, lambda: {"mine": None})
    with pytest.raises(UserError, match=r"^state\(\)\['mine'\]: .*give str"):
        worker.save(9, lambda: {"mine": tmp_path})
    assert made(tmp_path).load() == {"mine": None}


def test_a_checkpoint_that_cannot_be_loaded_is_told_in_one_line(tmp_path: Path) -> None:
    """As an earlier version of the library saved them."""
    worker = made(tmp_path)
    manifest = dict.fromkeys(checkpoints.FIELDS) | {"step": 7, "epoch": 0}
    content = {"state": {"mine": deque([1])}, "baton": manifest}
    checkpoints.write(worker.run.checkpoints / "iter_7.pth", content, manifest, worker.run.job, 1)
    with pytest.raises(UserError, match=r"iter_7\.pth cannot be loaded, .*collections\.deque") as caught:
        worker.load()
    assert "\n" not in str(caught.value)


def test_a_loss_that_nobody_logged_is_not_nan(tmp_path: Path) -> None:
    worker = made(tmp_path)
    logged: Any
    for step, logged, diverged in ((1, {}, False), (2, {"other": 0.5}, False), (3, {"loss": math.nan}, True)):
        worker.log(step, **logged)
        worker._shown = -math.inf
        worker._show(step, 0)
        assert history.progress(worker.run)["diverged"] == diverged, step


@pytest.mark.parametrize("number", [float, np.float32, np.array, torch.tensor])
def test_a_number_is_one_whatever_it_is_of(number: Callable[[float], Any], tmp_path: Path) -> None:
    worker = made(tmp_path)
    worker._agreement, worker.preemption = Agreement(None), Preemption()
    step, worker.steps = number(20.0), number(40.0)
    worker.begin_step()
    worker.log(step, loss=number(0.5))
    worker.validated(step, accuracy=number(0.25), less=False, seconds=number(1.5))
    worker.end_step(step, lambda: {"done": True}, save=True)
    worker.report("preempted", step=step, epoch=0)
    assert [event["step"] for event in events.iterate(worker.run.events)] == [20] * 4
    assert told(worker, "validated")[0]["metrics"] == {"accuracy": 0.25}
    assert [path.name for path in worker.run.checkpoints.glob("*.pth")] == ["iter_20.pth"]
    rows = [json.loads(line) for line in worker.run.metrics.read_text().splitlines()]
    assert [(row["kind"], row["step"]) for row in rows] == [("train", 20), ("val", 20)]
    shown = json.loads((worker.run.path / files.PROGRESS()).read_text())
    assert (shown["step"], shown["max_steps"], shown["loss"]) == (20, 40, 0.5)
