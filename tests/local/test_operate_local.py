"""The operating commands on a real local run: seen running, cancelled, resumed, evaluated, reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from jobs.run import events
from tests.stages import wait_until
from tests.support.cluster import processes

ROOT = Path(__file__).resolve().parents[2]


def call(runs: Path, script: str, *arguments: object) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "BATON"))}
    done = subprocess.run(
        [sys.executable, f"launch/{script}.py", *map(str, arguments)],
        cwd=ROOT, env=kept | {"BATON_RUNS": str(runs), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_is_cancelled_resumed_evaluated_and_reported(tmp_path: Path, voc_small: Path) -> None:
    runs, run = tmp_path / "runs", tmp_path / "runs" / "mine"

    def status() -> dict[str, Any]:
        return dict(json.loads(call(runs, "status", "mine", "--json")))

    def named(name: str) -> list[dict[str, Any]]:
        return [event for event in events.read(run / "events.jsonl") if event["event"] == name]

    call(
        runs, "train", "--cluster", "local", "--config", "tests/support/configs/tiny.py", "--gpus", 1,
        "--run", "mine", "--data-root", voc_small, "--set", "train_cfg.max_epochs=40",
    )  # fmt: skip
    wait_until(lambda: named("epoch"), 120)
    assert status()["state"] == "running"
    chain = json.loads((run / "job/local.json").read_text())
    assert f"cancelled {chain['job']}" in call(runs, "cancel", "mine")
    assert processes.identify(chain["pid"]) is None
    cancelled = status()
    assert cancelled["state"] == "cancelled"
    assert not named("finished"), "it was too quick to be cancelled"
    assert "none of its jobs was queued or running" in call(runs, "cancel", "mine")

    call(runs, "train", "--resume", "mine", "--cluster", "local", "--wait")
    assert not (run / "job/cancelled").exists()
    assert named("resumed")[-1]["step"] >= 6
    after = status()
    assert after["state"] == "finished"
    assert after["epoch"] == 40
    assert after["lost_steps"] == 0
    assert after["mIoU"] is not None
    page = (run / "report.html").read_text()
    for part in ("cancelled", "Confusion matrix", "data:image/jpeg;base64,", "ETTR"):
        assert part in page
    # TensorBoard's files are there although the config does not ask for them.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = list((run / "tensorboard").rglob("events.out.tfevents.*"))
    assert written
    losses = 0
    for file in written:
        accumulator = EventAccumulator(str(file))
        accumulator.Reload()
        if "loss" in accumulator.Tags()["scalars"]:
            losses += len(accumulator.Scalars("loss"))
    assert losses > 0
    assert "train local-" in call(runs, "logs", "mine", "--job", "train", "--rank", 0)
    assert "mIoU" in call(runs, "logs", "mine", "--job", "evaluate")

    # Once more by hand: seen while it goes on, ended by cancel, and at its end the report is written anew.
    (run / "report.html").unlink()
    call(runs, "evaluate", "mine", "--cluster", "local")
    assert status()["words"] == "trained, being evaluated"
    assert call(runs, "cancel", "mine").startswith("mine: cancelled local-")
    assert status()["words"] == "finished, evaluated; an evaluation was cancelled"
    assert not list((run / "job").glob("local-*.json"))
    assert len(named("evaluated")) == 1
    call(runs, "evaluate", "mine", "--cluster", "local", "--wait")
    assert status()["words"] == "finished, evaluated"
    assert (run / "report.html").exists()


def test_runs_that_go_by_mdice_are_shown_by_it(tmp_path: Path, voc_small: Path) -> None:
    """A sweep of two, as a user sees it: what --wait says, the table, the report, the comparison."""
    runs, evaluators = tmp_path / "runs", "{'type': 'IoUMetric', 'iou_metrics': ['mIoU', 'mDice']}"
    said = call(
        runs, "train", "--cluster", "local", "--config", "tests/support/configs/tiny.py", "--gpus", 1,
        "--run", "dice", "--data-root", voc_small, "--seeds", "0,1", "--wait",
        "--set", "default_hooks.checkpoint.save_best='mDice'", "--set", f"val_evaluator={evaluators}",
    )  # fmt: skip
    assert "mDice" in said
    best = {}
    for name in ("dice-0", "dice-1"):
        best[name] = json.loads((runs / name / "checkpoints/best.json").read_text())
        assert best[name]["metric"] == "mDice"
        found = json.loads(call(runs, "status", name, "--json"))
        assert found["best"]["metric"] == found["evaluated"]["metric"] == "mDice"
        assert found["best"]["value"] == best[name]["value"]
        assert "best mDice in validation" in (runs / name / "report.html").read_text()
    head, line, *_ = call(runs, "status").splitlines()
    assert "BEST MDICE MDICE" in " ".join(head.split())
    assert f"{max(one['value'] for one in best.values()):.2f}" in line
    assert "| group | runs | mDice | mIoU |" in call(
        runs, "report", "--compare", "dice", "--table", "markdown"
    )
