"""launch/prepare.py on this machine: other datasets than VOC, and looking at what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.catalog.readiness import state
from jobs.run import events
from tests.local.test_prepare_others import ade  # noqa: F401 (a fixture)
from tests.stages import wait_until

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
    options = ["--dataset", "Cityscapes", "--pack", "--partial", "--converter-args", "{out} --nproc 1"]
    for cluster in ("local", "slurm"):
        done = launch(environment, "prepare", "--cluster", cluster, "--dry-run", *options)
        assert done.returncode == 0, done.stderr
        assert "--dataset cityscapes --pack --partial '--converter-args={out} --nproc 1'" in done.stdout
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


# The preparation reads this first, and stands still where it is to write a mask as long as a file is there.
HOLD = """
import os, sys, time

def hold(event, arguments):
    if event != "open" or "SegmentationClassAug" not in str(arguments[0]):
        return
    while os.path.exists(FOLDER + "/hold"):
        open(FOLDER + "/held", "w").close()
        time.sleep(0.05)

sys.addaudithook(hold)
"""


def test_a_training_waits_for_a_preparation_and_makes_nothing_itself(
    environment: dict[str, str], tmp_path: Path, voc_archives: Path
) -> None:
    data = tmp_path / "data"
    (tmp_path / "hold").touch()
    (tmp_path / "sitecustomize.py").write_text(f"FOLDER = {str(tmp_path)!r}\n{HOLD}")
    held = environment | {"PYTHONPATH": str(tmp_path)}
    options = ["--cluster", "local", "--data-root", data]
    made = launch(held, "prepare", *options, "--archives", voc_archives, "--no-weights", "--json")
    assert made.returncode == 0, made.stderr
    wait_until((tmp_path / "held").exists, 90)

    config = ["--config", "tests/support/configs/tiny.py", "--gpus", "1", "--run", "behind", "--wait"]
    training = subprocess.Popen(
        [sys.executable, "launch/train.py", *map(str, options), *config],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    run = tmp_path / "runs/behind"

    def waits() -> bool:
        return any("waiting for it" in log.read_text() for log in run.glob("job/local-*-prepare_0_log.out"))

    wait_until(waits, 90)
    cancelled = launch(environment, "cancel", json.loads(made.stdout)["run"])
    assert cancelled.returncode == 0, cancelled.stderr
    out, error = training.communicate(timeout=90)
    assert training.returncode == 2, out + error
    assert "that was waited for has ended without finishing: python launch/prepare.py" in out
    assert not (data / "VOCdevkit").exists()
    assert "started" not in [event["event"] for event in events.iterate(run / "events.jsonl")]
