"""For tests of supervision without torch: a run directory, and the ranks of a step on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.run import events
from jobs.run.directory import Request, Run

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = [sys.executable, str(ROOT / "tests/stand_in_worker.py")]


def make_run(path: Path, **plan: Any) -> Run:
    """An empty run directory; `plan` is what the stand-in worker is told (see there)."""
    run = Run(path)
    for directory in (run.job, run.code, run.checkpoints):
        directory.mkdir(parents=True)
    plan = {"steps": 20, "seconds": 0.01, "save_every": 5} | plan
    (path / "plan.json").write_text(json.dumps(plan))
    run.write_request(Request(name=run.name, config="", data_root=str(path), created=events.now()))
    return run


def train_command(run: Run, real: bool = False) -> list[str]:
    if real:
        return [sys.executable, "-m", "jobs.train", str(run.path)]
    worker = [*STAND_IN, str(run.path / "plan.json")]
    return [sys.executable, "-m", "jobs.train", str(run.path), "--worker", *worker]


def start_ranks(run: Run, ranks: int, real: bool = False, **env: str) -> list[subprocess.Popen[bytes]]:
    """Starts the supervisors of one step, as the local chain does; `real`: with the worker that trains."""
    identity = {"SUBMITIT_LOCAL_JOB_ID": "1", "SUBMITIT_LOCAL_NTASKS": str(ranks)}
    processes = []
    for rank in range(ranks):
        place = {"SUBMITIT_LOCAL_GLOBALID": str(rank), "SUBMITIT_LOCAL_LOCALID": str(rank)}
        environment = {**os.environ, "BATON_RENDEZVOUS_SECONDS": "20", **identity, **place, **env}
        with (run.job / f"local-1-train_{rank}_log.out").open("ab") as log:
            processes.append(
                subprocess.Popen(
                    train_command(run, real),
                    env=environment,
                    cwd=run.code if real else ROOT,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def end_of(ranks: list[subprocess.Popen[bytes]], seconds: float = 60) -> list[int]:
    return [process.wait(timeout=seconds) for process in ranks]


def of(run: Run, name: str) -> list[dict[str, Any]]:
    return [record for record in events.read(run.events) if record["event"] == name]


def processes_of(run: Run) -> list[str]:
    """Every process of the machine that has the run's directory in its environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"BATON_RUN={run.path}\0".encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (OSError, UnicodeDecodeError):
            continue
    return [line for line in found if line]


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Polls until the condition is true; fails after `seconds`, which only a broken program needs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not true in time"
        time.sleep(0.02)
