"""A training whose tasks run in a real container. `make container-test` makes the image and plays this."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from launcher import HELD, ROOT, Launcher, of_run

from jobs.run import image, staged
from tests.imaging import FELL_BACK, STARTED, make, pack
from tests.support.slurm import wait_event, wait_for

PYTHON = "/opt/baton/.venv/bin/python"


@pytest.mark.parametrize("kind", ["", staged.ENVIRONMENT, staged.SQUASHED])
def test_a_training_in_a_container_is_preempted_comes_back_and_is_evaluated(
    kind: str, launch: Launcher, tmp_path: Path
) -> None:
    """With the container's own environment, and with the image of one that lies outside it."""
    container = os.environ.get("BATON_TEST_IMAGE")
    if shutil.which("apptainer") is None:
        pytest.skip("no apptainer here (Debian sid has it): make container-test")
    if container is None:
        pytest.skip("BATON_TEST_IMAGE names no image: make container-test")
    assert not Path(PYTHON).exists()  # only the container has it
    profile, local = tmp_path / "site.yaml", tmp_path / "local"
    mounts, python, more = [str(ROOT)], PYTHON, ""
    if kind:
        environment = make(tmp_path / "environment")
        pack(environment, *["--squashfs"] * (kind == staged.SQUASHED))
        local.mkdir()
        mounts += [str(tmp_path), str(Path(sys.prefix).resolve()), sys.base_prefix]
        python, more = image.interpreter(environment), f"environment: image\nstage: {local}\n"
    profile.write_text(
        f"partition: low\npython: {python}\nenv: {{PYTHONPATH: '{ROOT}'}}\n{more}"
        f"container: {{kind: apptainer, image: '{container}', mounts: {mounts}, options: [--userns]}}\n"
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

    logs = [path.read_text() for job in jobs.values() for path in (run / "job").glob(f"{job}_*_log.out")]
    places = [place for log in logs for place, _ in STARTED.findall(log)]
    assert len(places) == (2 * 2 + 1 if kind else 0), logs  # two starts of two ranks, and the evaluation's
    assert all(Path(place).is_relative_to(local) for place in places)
    assert not [log for log in logs if FELL_BACK.search(log)]
