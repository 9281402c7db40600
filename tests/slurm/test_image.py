"""Jobs that run from the environment's image, unpacked on their node, on a real Slurm."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from pathlib import Path

from launcher import HELD, ROOT, Launcher, of_run

from jobs.run import image, staged
from tests.support.slurm import wait_event, wait_for

UNPACKED = re.compile(r"^environment: (\S+) on (\S+), ", re.MULTILINE)


def test_a_training_and_its_evaluation_run_from_the_image(launch: Launcher, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (mine,) = Path(sys.prefix).glob("lib/python*/site-packages")
    (site / "more.pth").write_text(f"{mine}\n")
    profile, local = tmp_path / "site.yaml", tmp_path / "local"
    local.mkdir()
    profile.write_text(
        f"partition: low\npython: {image.interpreter(environment)}\nenvironment: image\n"
        f"stage: $OWN_DISK/mine\nenv: {{OWN_DISK: {local}, PYTHONPATH: {ROOT}}}\n"
    )
    arguments = ["--run", "imaged", "--cluster", profile, "--nodes", 1, "--gpus", 2, "--set", *HELD]
    _, error = launch(
        "train", "--config", "tests/support/configs/tiny.py", "--data-root", launch.data, *arguments, code=2
    )
    assert f"env/pack.sh {environment} makes it" in error
    assert not (launch.runs / "imaged").exists()

    subprocess.run([ROOT / "env" / "pack.sh", environment], check=True)
    jobs = launch.train(*arguments)
    run = launch.runs / "imaged"
    wait_for((run / "job" / "held-0").exists, "the run is held")
    (copy,) = (path for path in staged.folder(local / "mine").iterdir() if path.suffix == staged.ENVIRONMENT)
    launch.slurm.preempt(jobs["train"])
    wait_event(run, "resumed")
    for job in jobs.values():
        assert launch.slurm.wait_ended(job) == "COMPLETED"
    assert len(of_run(run, "finished")) == len(of_run(run, "evaluated")) == 1
    for job, tasks in ((jobs["train"], 2), (jobs["evaluate"], 1)):
        for task in range(tasks):
            log = (run / "job" / f"{job}_{task}_log.out").read_text()
            said = UNPACKED.findall(log)
            assert [place for place, _ in said] == [str(copy)] * len(said), log
            assert len(said) == (2 if tasks == 2 else 1), log
            assert "on from" not in log
