"""`scontrol suspend` and `resume` on a real Slurm: no hang, and the time is a part of its own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from test_operate import call, status, train

from jobs.run import events
from tests.support.slurm import Slurm, wait_event

SECONDS = 15.0


def test_a_job_that_slurm_suspends_goes_on_and_says_for_how_long(
    cluster: Slurm, tmp_path: Path, voc_small: Path
) -> None:
    runs = tmp_path / "runs"
    options = ("--partition", "low", "--nodes", "2", "--gpus", "1", "--no-evaluation")
    run, jobs = train(cluster, runs, voc_small, "first", *options)
    wait_event(run, "epoch", epoch=1)
    began = time.monotonic()
    cluster.run("scontrol", "suspend", jobs["train"])
    cluster.wait_state(jobs["train"], "SUSPENDED")
    before = time.monotonic()
    shown = status(cluster, runs, "first")
    assert (shown["state"], shown["words"].split(",")[0]) == ("suspended", "suspended by Slurm")
    time.sleep(SECONDS)  # what is measured
    least = time.monotonic() - before
    cluster.run("scontrol", "resume", jobs["train"])
    event = wait_event(run, "suspended")
    most = time.monotonic() - began
    assert least - 2 < event["seconds"] < most + 2
    step = status(cluster, runs, "first")["step"]
    wait_event(run, "epoch", epoch=step // 6 + 2)
    after = status(cluster, runs, "first")
    assert after["state"] == "running"
    # Each rank says so; it is counted once.
    assert after["seconds"]["suspended"] == pytest.approx(event["seconds"], abs=2)
    told = {record["event"] for record in events.read(run / "events.jsonl")}
    assert not told & {"hang", "failed", "preempted"}
    call(cluster, runs, "cancel", "first")
    assert cluster.wait_ended(jobs["train"]) == "CANCELLED"
