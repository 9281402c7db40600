"""The thread that hears of a preemption."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
