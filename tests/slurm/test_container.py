"""A training whose tasks run in a real container. `make container-test` makes the image and plays this."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from launcher import HELD, ROOT, Launcher, of_run

from tests.support.slurm import wait_event, wait_for

PYTHON = "/opt/baton/.venv/bin/python"


def test_a_training_in_a_container_is_preempted_comes_back_and_is_evaluated(
    launch: Launcher, tmp_path: Path
) -> None:
    image = os.environ.get("BATON_TEST_IMAGE")
    if shutil.which("apptainer") is None:
        pytest.skip("no apptainer here (Debian sid has it): make container-test")
    if image is None:
        pytest.skip("BATON_TEST_IMAGE names no image: make container-test")
    assert not Path(PYTHON).exists()  # only the container has it
    profile = tmp_path / "site.yaml"
    profile.write_text(
        f"partition: low\npython: {PYTHON}\nenv: {{PYTHONPATH: '{ROOT}'}}\n"
        f"container: {{kind: apptainer, image: '{image}', mounts: ['{ROOT}'], options: [--userns]}}\n"
    )
    jobs = launch.train("--run", "boxed", "--cluster", profile, "--nodes", "2", "--gpus", "1", "--set", *HELD)
    run = launch.runs / "boxed"
    wait_for((run / "job" / "held-0").exists, "the run is held", 600)
    launch.slurm.preempt(jobs["train"])
    wait_event(run, "resumed", 600)
    for job in jobs.values():
        assert launch.slurm.wait_ended(job, 600) == "COMPLETED"
    (preempted,) = of_run(run, "preempted")
    (resumed,) = of_run(run, "resumed")
    assert resumed["step"] == preempted["step"] > 0, "finished steps were lost"
    assert len(of_run(run, "finished")) == len(of_run(run, "evaluated")) == 1
