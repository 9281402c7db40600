"""A third executor is one file in launch/submit/executors: it is found, submits, is watched and cancelled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cluster import processes

ROOT = Path(__file__).resolve().parents[2]

TOY = '''
"""Jobs that only wait."""

import os
import signal
import subprocess

from jobs.run import events

BATCH_SCRIPTS = False


def is_here():
    return True


def check(resolved):
    resolved.hints.append("only a toy")


def wait_behind(job, holder, arguments, prerequisites):
    return False


def submit(made, batches, prerequisites):
    submitted = []
    for run in made:
        ids = {}
        for batch in batches:
            process = subprocess.Popen(["sleep", "300"], start_new_session=True, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            ids[batch.resolved.stage] = f"toy-{process.pid}"
            events.append(run.events, "submitted", stage=batch.resolved.stage, job=f"toy-{process.pid}",
                          executor="toy")
        submitted.append((ids, None))
    return submitted


def shown(batches):
    return "\\n".join(f"toy {batch.name}" for batch in batches)


def by_hand(made):
    return f"toy {made[0].name}"


def owns(job):
    return job.startswith("toy-")


def is_alive(run, job):
    try:
        with open(f"/proc/{job[4:]}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def end(run, jobs):
    for job in jobs:
        os.kill(int(job[4:]), signal.SIGTERM)
'''


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in ("launch", "jobs", "configs", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "launch/submit/executors/toy.py").write_text(TOY)
    (tmp_path / "configs/clusters/mine.yaml").write_text("executor: toy\n")
    return tmp_path


def call(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "BATON"))}
    return subprocess.run(
        [sys.executable, f"launch/{words[0]}.py", *words[1:]],
        cwd=checkout, env=kept, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def lives(job: str) -> bool:
    """Whether its process does; one that nobody has waited for yet does not."""
    return processes.identify(int(job[4:])) is not None


def test_a_third_executor_submits_is_seen_and_cancelled(checkout: Path) -> None:
    train = ("train", "--cluster", "mine", "--worker", "examples/plain_pytorch.py", "--run", "first")
    assert call(checkout, *train, "--dry-run").stdout.endswith("toy first\n")
    made = call(checkout, *train, "--json")
    assert made.returncode == 0, made.stderr
    assert "only a toy" in made.stderr
    job = json.loads(made.stdout)["jobs"]["train"]
    assert job.startswith("toy-")
    assert lives(job)
    state = json.loads(call(checkout, "status", "first", "--json").stdout)["state"]
    assert state in ("queued", "pending", "running", "starting")
    again = call(checkout, "train", "--resume", "first")
    assert again.returncode == 2
    assert f"first is already queued or running as job {job}" in again.stderr
    ended = call(checkout, "cancel", "first", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["jobs"] == [job]
    assert not lives(job)
    assert json.loads(call(checkout, "status", "first", "--json").stdout)["state"] == "cancelled"


def test_an_executor_that_is_not_there_is_one_line(checkout: Path) -> None:
    (checkout / "configs/clusters/mine.yaml").write_text("executor: toyz\n")
    done = call(checkout, "train", "--cluster", "mine", "--dry-run")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "`executor` is toy or slurm or local, not 'toyz'" in done.stderr
