"""A run directory of an earlier version (commit 818019e) is still read, and goes on with its own code.

tests/data/run-818019e.tar.xz was made by that commit's launchers: tests/configs/tiny.py on 8 + 4 generated
images, preempted once (SIGUSR2), cancelled after half of its epochs, evaluated by hand. Left out for its size
are pictures, TensorBoard's files, some of the checkpoints, and the link to the data.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from jobs.run import events
from tests.conftest import ROOT, run_module


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The run, with its data where it says that they are."""
    data = tmp_path / "data"
    run_module("jobs.prepare.synthetic", tmp_path / "archives", "--train", "8", "--val", "4", "--size", "64")
    run_module("jobs.prepare", "--data-root", data, "--archives", tmp_path / "archives", "--no-weights")
    with tarfile.open(ROOT / "tests/data/run-818019e.tar.xz") as archive:
        archive.extractall(tmp_path / "runs")
    run = tmp_path / "runs" / "run-818019e"
    (run / "code/data").symlink_to(data)
    request = yaml.safe_load((run / "run.yaml").read_text())
    request |= {"data_root": str(data), "python": sys.executable}
    (run / "run.yaml").write_text(yaml.safe_dump(request))
    return run


def launch(run: Path, script: str, *arguments: str) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "BATON"))}
    done = subprocess.run(
        [sys.executable, f"launch/{script}.py", *arguments],
        cwd=ROOT, env=kept | {"BATON_RUNS": str(run.parent)}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_it_is_shown_resumed_and_evaluated(old: Path) -> None:
    shown = launch(old, "status", old.name)
    assert "preempted (SIGUSR2), saved at step 12" in shown
    assert "cancelled by root" in shown
    assert "1 interruption (1 preempted), 0 steps done again" in shown
    launch(old, "report", old.name)
    assert "mIoU" in (old / "report.html").read_text()

    before = len(events.read(old / "events.jsonl"))
    launch(old, "train", "--resume", old.name, "--cluster", "local", "--wait")
    told = [record for record in events.read(old / "events.jsonl")[before:] if record["event"] != "submitted"]
    resumed = next(record for record in told if record["event"] == "resumed")
    assert (resumed["step"], resumed["checkpoint"]) == (23, "iter_23.pth")
    assert [record["event"] for record in told][-2:] == ["finished", "evaluated"]
    assert {record["start"] for record in told if "start" in record} == {3}

    launch(old, "evaluate", old.name, "--checkpoint", "last", "--cluster", "local", "--wait")
    assert events.read(old / "events.jsonl")[-1]["checkpoint"] == "epoch_20.pth"
    status = json.loads(launch(old, "status", old.name, "--json"))
    assert status["state"] == "finished", status


def test_its_batch_scripts_call_what_its_code_has(old: Path) -> None:
    for which in ("train", "evaluate"):
        script = launch(old, "train", "--resume", old.name, "--cluster", "slurm", f"--dry-run={which}")
        names = [line.split(" -m ")[1].split()[0] for line in script.splitlines() if " -m jobs." in line]
        assert names
        for name in names:
            module = old / "code" / name.replace(".", "/")
            assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), name
