"""Real SIGSTOP and SIGCONT on running trainings, as `scontrol suspend` sends them: the time is reported,
counts as nothing else, and is no hang."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from jobs.run.directory import Run
from jobs.run.exit_codes import FINISHED
from jobs.supervise import processes
from launch.observe import efficiency, history
from tests.stages import end_of, make_run, of, start_ranks, wait_until
from tests.support import tiny

STOP = 12.0
"""Seconds: more than a hang may take here."""


def below(ranks: Iterable[subprocess.Popen[bytes]]) -> list[int]:
    """The supervisors and all that they have started."""
    return [pid for rank in ranks for pid in (rank.pid, *processes.descendants(rank.pid))]


def workers(ranks: Iterable[subprocess.Popen[bytes]]) -> list[int]:
    return [processes.descendants(rank.pid)[0] for rank in ranks]


def stand_still(pids: list[int], seconds: float = STOP) -> float:
    """Stops the processes for that long; returns how long it was."""
    began = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)  # what is measured
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    return time.monotonic() - began


def long_run(path: Path, ranks: int) -> tuple[Run, list[subprocess.Popen[bytes]]]:
    run = make_run(path, steps=400, seconds=0.02, save_every=10)
    started = start_ranks(run, ranks, BATON_HANG_SECONDS="6")
    wait_until(lambda: of(run, "checkpoint"))
    return run, started


# What is stopped of two ranks.
WHOLE: dict[str, Callable[[list[subprocess.Popen[bytes]]], list[int]]] = {
    "all": below,
    "the workers": workers,
    "one rank": lambda ranks: below(ranks[1:]),
}


@pytest.mark.parametrize("what", WHOLE)
def test_what_stood_still_is_reported_once_and_is_no_hang(tmp_path: Path, what: str) -> None:
    run, ranks = long_run(tmp_path / "run", 2)
    # While a supervisor is there to see it, the limit for a hang goes on.
    stopped = stand_still(WHOLE[what](ranks), STOP if what == "all" else 4.0)
    assert end_of(ranks, 180) == [FINISHED] * 2
    (event,) = of(run, "suspended")
    assert event["seconds"] == pytest.approx(stopped, abs=1.6)
    assert event["seconds"] > 2
    assert event["rank"] == 1 or what != "one rank"
    assert not of(run, "hang")
    assert not of(run, "failed")


def test_a_supervisor_that_is_stopped_alone_stops_nothing(tmp_path: Path) -> None:
    run, ranks = long_run(tmp_path / "run", 1)
    stand_still([ranks[0].pid], 8.0)
    assert end_of(ranks, 180) == [FINISHED]
    assert not of(run, "suspended")


def test_a_real_training_counts_it_neither_as_training_nor_in_its_pace(tmp_path: Path) -> None:
    run = tiny.make_run(tmp_path / "run", tiny.make_data(tmp_path / "data"), **{"train_cfg.max_epochs": 300})
    ranks = start_ranks(run, 1, real=True, OMP_NUM_THREADS="1")
    try:
        wait_until(lambda: len(of(run, "epoch")) > 2, 120)
        before = history.progress(run)["seconds_per_step"]
        stopped = stand_still(below(ranks))
        wait_until(lambda: of(run, "suspended"), 30)
        at = of(run, "epoch")[-1]["step"]
        wait_until(lambda: (history.progress(run)["step"] or 0) > at + 2, 60)
        after = history.progress(run)["seconds_per_step"]
    finally:
        ranks[0].terminate()
        end_of(ranks)
    past = history.read(run)
    shares = efficiency.shares(past, past.last)
    assert shares.suspended == pytest.approx(stopped, abs=1.6)
    assert sum(getattr(shares, name) for name in efficiency.NAMES) == pytest.approx(shares.wall)
    assert shares.training + shares.validation + shares.saving < shares.wall - stopped + 1.6
    # One of the last fifty steps took twelve seconds: its part of their mean would be a quarter of a second.
    assert after is not None
    assert after < (before or 0.0) + STOP / 100
