"""The launchers on the test cluster, as its users call them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from jobs.run import events
from tests.support.slurm import Slurm, wait_event, wait_for

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--config", "tests/support/configs/tiny.py", "--cpus-per-gpu", "1")


HELD = (
    "custom_imports={'imports': ['tests.support.slurm_faults'], 'allow_failed_imports': False}",
    "custom_hooks=[{'type': 'Fault', 'plan': [{'step': 4, 'do': 'hold'}]}]",
)
"""Settings of a run that waits before its fourth step until it is asked to leave; see `requeue_held`."""


class Launcher:
    """The launchers as a user of the cluster types them, with runs of their own."""

    def __init__(self, slurm: Slurm, folder: Path, data: Path) -> None:
        self.slurm = slurm
        self.checkout = ROOT
        self.runs = folder / "runs"
        self.data = data
        self.environment = {
            key: value for key, value in slurm.environment.items() if not key.startswith("BATON")
        } | {"BATON_RUNS": str(self.runs), "OMP_NUM_THREADS": "1"}

    def start(self, script: str, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, f"launch/{script}.py", *map(str, arguments)],
            cwd=self.checkout,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, script: str, *arguments: object, code: int = 0) -> tuple[str, str]:
        """Runs a launcher to its end: (stdout, stderr). Fails the test unless it ends with `code`."""
        process = self.start(script, *arguments)
        out, error = process.communicate(timeout=300)
        assert process.returncode == code, f"ended with {process.returncode}: {out}{error}"
        return out, error

    def train(self, *arguments: object) -> dict[str, str]:
        """Submits a tiny training; returns the job ids."""
        out, _ = self("train", *TINY, "--data-root", self.data, "--json", *arguments)
        jobs: dict[str, str] = json.loads(out.splitlines()[0])["jobs"]
        return jobs

    def program(self, folder: Path, name: str, script: str) -> None:
        """Puts a program before those of the same name on the launchers' and their jobs' PATH."""
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
        if not self.environment["PATH"].startswith(f"{folder}:"):
            self.environment["PATH"] = f"{folder}:{self.environment['PATH']}"


def requeue_held(launch: Launcher, name: str) -> None:
    """Requeues a run with the settings `HELD` by hand, once it waits there."""
    run = launch.runs / name
    wait_for((run / "job" / "held-0").exists, f"{name} is held")
    launch.slurm.run("scontrol", "requeue", of_run(run, "started")[0]["job"])
    wait_event(run, "preempted", start=1)


def of_run(run: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in events.iterate(run / "events.jsonl") if event["event"] == name]
