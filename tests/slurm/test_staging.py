"""A dataset on the node's own disk, on a real Slurm: preempted, and back on the same node."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from launcher import HELD, ROOT, Launcher, of_run

from jobs.prepare.packed import convert
from jobs.run import packed, staged
from tests.support.slurm import wait_event, wait_for

IMPORTS = "['tests.support.slurm_faults', 'tests.support.full_disk']"
HELD_ON_ANY_DISK = (f"custom_imports={{'imports': {IMPORTS}, 'allow_failed_imports': False}}", *HELD[1:])


def test_a_preempted_training_finds_its_copy_on_the_same_node(launch: Launcher, tmp_path: Path) -> None:
    launch.data = shutil.copytree(launch.data, tmp_path / "data")
    convert.pack(launch.data, "VOCdevkit")
    local = tmp_path / "local"
    launch.environment |= {"OWN_DISK": str(local), "PYTHONPATH": str(ROOT)}
    where = [
        "--gpus",
        2,
        "--partition",
        "low",
        "--sbatch",
        "nodelist=n1",
        "--stage",
        "${OWN_DISK}/mine",
        "--no-evaluation",
    ]
    local.mkdir()
    jobs = launch.train("--run", "staged", *where, "--set", *HELD_ON_ANY_DISK, "baton.stage_decoded=true")
    run = launch.runs / "staged"
    first = wait_event(run, "staged", start=1)
    wait_for((run / "job" / "held-0").exists, "the run is held")
    launch.slurm.preempt(jobs["train"])
    second = wait_event(run, "staged", start=2)
    assert second["host"] == first["host"] == "n1"
    assert (first.get("found"), second.get("found")) == (None, True)
    assert Path(first["copy"]).parent.parent == local / "mine"
    assert first["path"] == str(launch.data / "VOCdevkit" / packed.NAME)
    assert launch.slurm.wait_ended(jobs["train"]) == "COMPLETED"
    assert len(of_run(run, "staged")) == 2
    assert Path(first["copy"]).stat().st_size == first["bytes"]
    (decoded,) = Path(first["copy"]).parent.glob(f"*{staged.PIXELS}")
    with zipfile.ZipFile(first["path"]) as archive:
        of_images = [file for file in archive.infolist() if file.filename.endswith(".jpg")]
    assert decoded.stat().st_size > len(of_images) * 1000
