"""Two ranks: over NCCL with a GPU each, else over gloo on the only GPU (or the CPU). On one GPU over
NCCL too, with NCCL_MULTI_RANK_GPU_ENABLE=1 (2.30 or newer)."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.trainings import start
from jobs.engine import devices
from jobs.run import events
from jobs.run.directory import Run
from jobs.run.exit_codes import RESUME
from tests.gpu import work
from tests.gpu.work import CNN, GPUS, Show
from tests.support import tiny

pytestmark = pytest.mark.slow
STEPS = 6
SYNC = {
    "model__backbone__norm_cfg__type": "SyncBN",
    "model__decode_head__norm_cfg__type": "SyncBN",
    "train_dataloader__batch_size": 2,
    "baton__deterministic": True,
}
OVER = "NCCL" if GPUS > 1 or (GPUS == 1 and os.environ.get(devices.MULTI_RANK) == "1") else "gloo"
PLAIN = {key: "BN" for key in SYNC if key.endswith("norm_cfg__type")}


def two(path: Path, data: Path, **settings: Any) -> Run:
    return work.make_run(path, data, CNN, STEPS, **SYNC | settings)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks left alone come to."""
    run = two(tmp_path_factory.mktemp("whole") / "run", data)
    assert tiny.start(run, 2) == [0, 0], tiny.log_of(run, 1)
    assert f"over {OVER}".lower() in (run.job / "1_0_log.out").read_text().lower()
    return work.last(run)


def test_one_rank_is_told_and_both_leave(whole: dict[str, Any], data: Path, tmp_path: Path) -> None:
    run = two(tmp_path / "run", data)
    plan = {"at": "step", "step": 3, "signal": "SIGUSR2", "rank": 1}
    assert tiny.start(run, 2, plan) == [RESUME, RESUME], tiny.log_of(run, 1)
    assert tiny.start(run, 2) == [0, 0], tiny.log_of(run, 2)
    assert tiny.differences(work.last(run), whole) == []


def test_two_become_one(data: Path, tmp_path: Path, show: Show) -> None:
    """One rank then takes two batches a step, one by one: SyncBN would see half as many images at once."""
    whole, run = (two(tmp_path / name, data, **PLAIN) for name in ("whole", "run"))
    assert tiny.start(whole, 2) == [0, 0], tiny.log_of(whole, 1)
    plan = {"at": "step", "step": 3, "signal": "SIGUSR2", "rank": 0}
    assert tiny.start(run, 2, plan) == [RESUME, RESUME], tiny.log_of(run, 1)
    assert tiny.start(run, 1) == [0], tiny.log_of(run, 2)
    (resumed,) = (e for e in events.read(run.events) if e["event"] == "resumed")
    assert (resumed["world_size_before"], resumed["accumulate"]) == (2, 2)
    found = work.last(run)
    assert found["step"] == STEPS
    difference = work.apart(found, work.last(whole))
    show(f"weights apart, two ranks (over {OVER}) and 2 → 1 after half", f"{difference:.1e}")
    assert difference < 0.05  # sums in another order, no other training


def test_a_dead_rank_ends_the_other(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By real supervisors. The next start goes on."""
    run = two(tmp_path / "run", data)
    (run.code / "benchmarks").symlink_to(start.ROOT / "benchmarks")
    monkeypatch.setenv("INTERRUPT", json.dumps({"at": "step", "step": 4, "signal": "SIGKILL", "rank": 1}))
    started = start.start("ours", run, 2)
    codes = [process.wait(240) for process in started]
    (failed,) = (e for e in events.read(run.events) if e["event"] == "failed")
    assert failed["rank"] == 1
    assert 0 not in codes
    monkeypatch.delenv("INTERRUPT")
    start.wait(run, start.start("ours", run, 2))
    assert work.last(run)["step"] == STEPS


@pytest.mark.skipif(work.ON_CPU, reason="a minute of standing still: tests/local/test_supervision.py")
def test_a_hang_is_found_before_nccls_watchdog(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, show: Show
) -> None:
    run = two(tmp_path / "run", data)
    request = run.request()
    request.cluster.hang_minutes = 1
    run.write_request(request)
    pause = tmp_path / "pause"
    plan = {"at": "step", "step": 4, "pause": str(pause), "rank": 1}
    monkeypatch.setenv("INTERRUPT", json.dumps(plan))
    began = time.monotonic()
    codes = [process.wait(240) for process in start.start("ours", run, 2)]
    (hang,) = (e for e in events.read(run.events) if e["event"] == "hang")
    assert 0 not in codes
    show("a hang, limit 60 s, was over after", f"{time.monotonic() - began:.0f} s, rank {hang['rank']}")
    assert any(run.job.glob("stacks-*"))
