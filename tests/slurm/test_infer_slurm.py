"""An inference that is told to leave, or preempted, goes on where it stopped, on two ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launcher import HELD, ROOT, Launcher, of_run
from PIL import Image

from tests.support.slurm import wait_for

IMAGES, FIRST = 60, 20
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "HeldImages", "first": FIRST},
    {"type": "Resize", "scale": (64, 48), "keep_ratio": True},
    {"type": "PackSegInputs"},
]


@pytest.mark.parametrize("how", ["USR2", "preempted"])
def test_an_interrupted_inference_goes_on(how: str, launch: Launcher, tmp_path: Path) -> None:
    launch.environment["PYTHONPATH"] = str(ROOT)
    settings = [HELD[0], f"test_dataloader.dataset.pipeline={PIPELINE}"]
    job = launch.train("--run", "one", "--no-evaluation", "--set", *settings)["train"]
    assert launch.slurm.wait_ended(job) == "COMPLETED"
    photo = Image.open(next((launch.data / "VOCdevkit/VOC2012/JPEGImages").glob("*.jpg")))
    photos, out = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    for number in range(IMAGES):
        photo.rotate(number).save(photos / f"{number:02}.jpg")

    said, _ = launch("infer", "one", photos, "--out", out, "--gpus", 2, "--json")
    job = json.loads(said)["jobs"]["infer"]
    wait_for(lambda: len(list(out.glob("*.png"))) == FIRST, "the first masks")
    if how == "USR2":  # as it comes before the time limit
        launch.slurm.run("scancel", "--signal=USR2", job)
    else:
        launch.slurm.preempt(job)
    assert launch.slurm.wait_ended(job) == "COMPLETED"
    assert launch.slurm.job(job)["Restarts"] == "1"
    log = launch.runs / "one" / "job" / f"{job}_0_log.out"
    assert len(list(out.glob("*.png"))) == IMAGES
    assert len(list(out.glob("*_overlay.jpg"))) == IMAGES
    assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]
    (done,) = [one for one in of_run(launch.runs / "one", "finished") if one["stage"] == "infer"]
    assert done["job"] == job
    (line,) = [line for line in log.read_text().splitlines() if "images segmented" in line]
    assert line.startswith(f"{IMAGES} of {IMAGES} images segmented (")
    assert FIRST <= int(line.split("(")[1].split(" ")[0]) < IMAGES
    assert [one for one in of_run(launch.runs / "one", "signal") if one["stage"] == "infer"]
