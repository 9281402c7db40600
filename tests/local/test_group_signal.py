"""Slurm signals every process of a step: supervisors, workers and the workers of their data loaders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.engine import checkpoints
from jobs.run import events, place
from jobs.run.directory import Run
from jobs.run.exit_codes import FINISHED, RESUME
from jobs.supervise import processes
from tests.stages import wait_until
from tests.support import tiny

pytestmark = pytest.mark.slow

RANKS = 2
STEP = 5
CONFIG = "tests/support/configs/tiny_iters.py"
SETTINGS = {
    "train_dataloader__batch_size": 2,
    "train_dataloader__num_workers": 2,
    "custom_imports": {"imports": ["tests.interrupting"], "allow_failed_imports": False},
    "custom_hooks": [{"type": "Interrupt"}, {"type": "EMAHook", "momentum": 0.1}],
}


def supervisors(run: Run, plan: dict | None = None) -> list[subprocess.Popen]:
    """The tasks of one job step: `python -m jobs.train RUN`, one a rank."""
    number = len(list(run.job.glob("start-*"))) + 1
    started = []
    for rank in range(RANKS):
        place = {"GLOBALID": rank, "LOCALID": rank, "NTASKS": RANKS, "JOB_ID": f"{run.name}{number}"}
        env = {f"SUBMITIT_LOCAL_{key}": str(value) for key, value in place.items()}
        with (run.job / f"{number}_{rank}_log.out").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-u", "-m", "jobs.train", str(run.path)],
                    cwd=run.code,
                    env=os.environ | env | {"OMP_NUM_THREADS": "1", "INTERRUPT": json.dumps(plan or {})},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return started


def test_everybody_is_signalled(tmp_path: Path) -> None:
    data = tiny.make_data(tmp_path / "data")
    run = tiny.make_run(tmp_path / "run", data, CONFIG, **SETTINGS)
    here = tmp_path / "here"
    tasks = supervisors(run, {"at": "step", "step": STEP, "pause": str(here), "rank": 0})
    try:
        wait_until(lambda: here.exists() or any(t.poll() is not None for t in tasks), 300)
        assert here.exists(), tiny.log_of(run, 1)
        everybody = {t.pid for t in tasks} | {pid for t in tasks for pid in processes.descendants(t.pid)}
        # A supervisor, a worker, two workers of its data loader: for each rank.
        assert len(everybody) >= RANKS * 4
        born = {pid: place.process_start(pid) for pid in everybody}
        for pid in everybody:
            os.kill(pid, signal.SIGUSR2)
        here.unlink()
        assert [t.wait(30) for t in tasks] == [RESUME] * RANKS, tiny.log_of(run, 1)
        assert [pid for pid in everybody if place.process_start(pid) == born[pid]] == []
    finally:
        here.unlink(missing_ok=True)
        for task in tasks:
            task.kill()
            task.wait()
    saved = checkpoints.newest(run.checkpoints)
    # The step in which the signal came has begun: it is heeded then, or after the next one.
    assert saved is not None
    assert saved.step in (STEP, STEP + 1)
    logged = [(e["event"], e.get("step")) for e in events.read(run.events)]
    assert ("preempted", saved.step) in logged
    assert "failed" not in dict(logged)

    assert [t.wait(300) for t in supervisors(run)] == [FINISHED] * RANKS, tiny.log_of(run, 2)
    whole = tiny.make_run(tmp_path / "whole", data, CONFIG, **SETTINGS)
    assert tiny.start(whole, RANKS) == [FINISHED] * RANKS
    assert tiny.differences(tiny.final_state(run), tiny.final_state(whole)) == []
