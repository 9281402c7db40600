"""launch/prepare.py on this machine: other datasets than VOC, and looking at what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import events
from jobs.prepare.state import state
from tests.local.test_prepare_others import ade  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "BATON"))}
    return kept | {"BATON_RUNS": str(tmp_path / "runs")}


def launch(environment: dict[str, str], script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"launch/{script}.py", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_what_the_job_may_be_told_reaches_it(environment: dict[str, str], tmp_path: Path) -> None:
    options = ["--dataset", "Cityscapes", "--partial", "--converter-args", "{out} --nproc 1"]
    for cluster in ("local", "slurm"):
        done = launch(environment, "prepare", "--cluster", cluster, "--dry-run", *options)
        assert done.returncode == 0, done.stderr
        assert "--dataset cityscapes --partial '--converter-args={out} --nproc 1'" in done.stdout
    assert not list(tmp_path.rglob("run.yaml"))


def test_another_dataset_is_prepared_and_looked_at(
    environment: dict[str, str],
    tmp_path: Path,
    ade: Path,  # noqa: F811
) -> None:
    data = tmp_path / "data with a space"
    common = ["--cluster", "local", "--dataset", "ade20k", "--data-root", data, "--wait"]
    made = launch(environment, "prepare", *common, "--archives", ade, "--no-checksum", "--partial")
    assert made.returncode == 0, made.stdout + made.stderr
    assert state(data, "ade").ready

    for how in ("quick", "deep"):
        looked = launch(environment, "prepare", *common, "--verify", how, "--json")
        assert looked.returncode == 0, looked.stdout + looked.stderr
    run = Path(json.loads(looked.stdout.splitlines()[0])["path"])
    recorded = [event for event in events.iterate(run / "events.jsonl") if event["event"] == "verified"]
    assert [(event["check"], event["files"]) for event in recorded] == [("deep", 18)]
    shown = launch(environment, "status", run.name, "--json")
    assert json.loads(shown.stdout)["state"] == "finished"
    assert json.loads(shown.stdout)["words"] == "verified"

    damaged = data / "ade/ADEChallengeData2016/annotations/training/ADE_train_00000003.png"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    looked = launch(environment, "prepare", *common, "--verify")
    assert looked.returncode == 2, looked.stdout + looked.stderr
    assert str(damaged) in looked.stdout
