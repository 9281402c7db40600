"""A run for one or two nodes, on the real cluster, requeued when only one is left."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.run import events
from jobs.run.directory import Run
from tests.support.slurm import Slurm, wait_event, wait_for

ROOT = Path(__file__).resolve().parents[2]
HOLD = 4
"""The step before which the run waits; an epoch has 6."""


@pytest.fixture
def drain(cluster: Slurm) -> Iterator[list[str]]:
    """Nodes put into it are drained by the test; they come back after it."""
    drained: list[str] = []
    yield drained
    for node in drained:
        cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    cluster.wait_nodes()


def test_with_a_node_less_every_sample_still_comes_once(
    cluster: Slurm, drain: list[str], tmp_path: Path, voc_small: Path
) -> None:
    hooks = [{"type": "RecordSamples"}, {"type": "Fault", "plan": [{"step": HOLD, "do": "hold"}]}]
    overrides = {
        "train_dataloader.batch_size": 1,
        "train_cfg.max_epochs": 2,
        "param_scheduler.0.end": 2,
        "custom_imports": {"imports": ["tests.support.slurm_faults", "tests.interrupting"]},
        "custom_hooks": hooks,
    }
    command = [
        *(
            sys.executable,
            str(ROOT / "launch/train.py"),
            "--config",
            str(ROOT / "tests/support/configs/tiny.py"),
        ),
        *("--run", "elastic", "--data-root", str(voc_small), "--cluster", "slurm", "--no-evaluation"),
        *("--nodes", "1-2", "--gpus", "2", "--cpus-per-gpu", "1", "--json"),
        *("--set", *(f"{key}={value!r}" for key, value in overrides.items())),
    ]
    environment = {"BATON_RUNS": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answer = json.loads(cluster.run(*command, env=environment, cwd=ROOT))
    run, job = Run(tmp_path / "elastic"), answer["jobs"]["train"]

    held = [run.job / f"held-{rank}" for rank in range(4)]
    wait_for(lambda: all(file.exists() for file in held), "all four ranks are held")
    one, *others = cluster.cluster.nodes
    drain += others
    for node in others:
        cluster.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    cluster.run("scontrol", "requeue", job)
    assert cluster.wait_ended(job) == "COMPLETED"

    story = events.read(run.events)
    started = [event for event in story if event["event"] == "started"]
    assert [(event["world_size"], len(event["hosts"])) for event in started] == [(4, 2), (2, 1)]
    assert started[1]["hosts"] == [one]
    left, resumed = wait_event(run.path, "preempted"), wait_event(run.path, "resumed")
    assert (resumed["step"], resumed["world_size_before"], resumed["accumulate"]) == (left["step"], 4, 2)

    seen: dict[int, list[str]] = {1: [], 2: []}
    steps: dict[int, int] = {}
    for path in run.job.glob("samples-*.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            seen[1 + (record["step"] - 1) // 6] += record["names"]
            steps[record["step"]] = steps.get(record["step"], 0) + len(record["names"])
    names = (voc_small / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt").read_text().split()
    assert sorted(seen[1]) == sorted(seen[2]) == sorted(names)
    assert steps == dict.fromkeys(range(1, 13), 4)
