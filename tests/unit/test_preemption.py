"""The thread that hears of a preemption."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.run.exit_codes import FAILED

ROOT = Path(__file__).resolve().parents[2]
DEAF = """
import threading
from jobs.engine.preemption import Preemption

def elsewhere():
    raise AttributeError("this torch has no such thing")

preempted = Preemption()
preempted.listen()
with preempted.validating(lambda: None, elsewhere):
    threading.Event().wait(60)
"""


def test_a_rank_that_can_no_longer_hear_a_preemption_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DEAF], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == FAILED
    assert "this torch has no such thing" in done.stderr


SPAWNING = """
import multiprocessing, time, types
from jobs.engine import preemption

def start():
    process = context.Process(target=time.sleep, args=(60,))
    process.start()
    status = open(f"/proc/{process.pid}/status").read()
    process.kill()
    return int(status.partition("SigBlk:")[2].split()[0], 16)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    loader = types.SimpleNamespace(multiprocessing_context=context, worker_init_fn=None, _get_iterator=start)
    preemption.outlive(loader)
    blocked = loader._get_iterator()
    print(all(blocked >> number - 1 & 1 for number in preemption.SIGNALS))
"""


def test_the_first_worker_that_is_spawned_is_born_with_the_signals_blocked(tmp_path: Path) -> None:
    """Python's helper of spawned processes is started with it, and lets SIGTERM in."""
    file = tmp_path / "spawning.py"
    file.write_text(SPAWNING)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout == "True\n", done.stderr


def test_a_loaders_process_that_is_spawned_is_prepared_before_its_dataset_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared: list[bool] = []
    monkeypatch.setattr("jobs.mmseg.compat.prepare", lambda: prepared.append(True))
    runpy.run_module("jobs.mmseg.rank", run_name="__mp_main__")
    assert prepared == [True]
