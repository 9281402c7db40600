"""`make demo`, but for the set-up: the network has learned, all that is promised is there, and again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.run.directory import Run

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def demo(tmp_path: Path, *arguments: str) -> tuple[str, Run]:
    """Runs the demo; returns what it printed and its run."""
    runs = tmp_path / "runs"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "BATON"))}
    before = set(runs.glob("demo-*"))
    done = subprocess.run(
        [sys.executable, "launch/demo.py", "--data-root", str(tmp_path / "data"), *arguments],
        cwd=ROOT,
        env=kept | {"BATON_RUNS": str(runs), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = set(runs.glob("demo-*")) - before
    assert done.stdout.splitlines()[-1].endswith(f"Everything lies in {path}")
    print(done.stdout)  # shown where a test fails
    return done.stdout, Run(path)


def test_the_demo_learns_and_shows_it_and_runs_again(tmp_path: Path) -> None:
    # A quarter of its epochs, and it has learned nearly all that it does in all of them.
    said, run = demo(tmp_path, "--epochs", "10")
    (figures,) = run.eval.glob("*/metrics.json")
    found = json.loads(figures.read_text())
    # Whoever guesses the background everywhere gets its IoU, at most 100, over the number of classes there;
    # one epoch gets some 30.
    assert sum(1 for one in found["classes"] if one["pixels"]) >= 5
    assert found["mIoU"] > 60
    assert f"mIoU {found['mIoU']:.2f}" in said
    assert list((figures.parent / "pictures").glob("*.jpg"))
    assert len(list((run.path / "infer").rglob("*_overlay.jpg"))) == 3
    assert "<svg" in run.report.read_text()

    again, second = demo(tmp_path, "--epochs", "1", "--gpus", "1")
    assert second.path != run.path
    assert "Generate a small dataset" not in again
    assert second.report.is_file()
