"""Evaluations and inferences of a finished run, and --wait, also on a cluster without accounting."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from launcher import TINY, Launcher, of_run
from PIL import Image

from tests.support.slurm import Slurm


def test_evaluation_on_two_ranks_inference_and_export(launch: Launcher, tmp_path: Path) -> None:
    job = launch.train("--run", "one", "--no-evaluation")["train"]
    assert launch.slurm.wait_ended(job) == "COMPLETED"
    out, _ = launch("evaluate", "one", "--gpus", 2, "--wait")
    assert re.search(r"mIoU \d", out)
    (evaluated,) = of_run(launch.runs / "one", "evaluated")
    logs = [path.name for path in (launch.runs / "one" / "job").glob(f"{evaluated['job']}_?_log.out")]
    assert len(logs) == 2

    photo = next((launch.data / "VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))
    out, _ = launch("infer", "one", photo, "--out", tmp_path / "masks", "--wait")
    assert (tmp_path / "masks" / f"{photo.stem}.png").exists()

    launch("export", "one", "--out", tmp_path / "model", "--wait")
    assert (tmp_path / "model" / "export.json").exists()
    (launch.runs / "one").rename(tmp_path / "elsewhere")  # the folder alone will do
    launch("infer", tmp_path / "model", photo, "--out", tmp_path / "exported", "--wait")
    (tmp_path / "elsewhere").rename(launch.runs / "one")
    masks = [Image.open(tmp_path / where / f"{photo.stem}.png") for where in ("masks", "exported")]
    assert masks[0].size == masks[1].size == Image.open(photo).size
    assert masks[0].tobytes() == masks[1].tobytes()  # which of the two made it, each says in its text

    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    launch("infer", "one", photo, bad, "--out", tmp_path / "others", "--wait", code=2)
    assert len(list((tmp_path / "others").rglob(f"{photo.stem}.png"))) == 1  # below its folder's name


def test_a_held_evaluation_is_seen_as_held(launch: Launcher) -> None:
    job = launch.train("--run", "one", "--no-evaluation")["train"]
    assert launch.slurm.wait_ended(job) == "COMPLETED"
    held = json.loads(launch("evaluate", "one", "--sbatch", "hold=true", "--json")[0])["jobs"]["evaluate"]
    shown = json.loads(launch("status", "one", "--json")[0])
    assert shown["state"] == "stuck"
    assert shown["words"].endswith(f"held (JobHeldUser); scontrol release {held} lets it go on")
    assert shown["next"].startswith(f"scontrol release {held} ")
    launch.slurm.run("scontrol", "release", held)
    assert launch.slurm.wait_ended(held) == "COMPLETED"
    assert json.loads(launch("status", "one", "--json")[0])["words"] == "finished, evaluated"


def test_without_accounting(variant: Callable[..., Slurm], tmp_path: Path, voc_small: Path) -> None:
    launch = Launcher(variant("--no-accounting", "--no-requeue"), tmp_path, voc_small)
    arguments = ["--data-root", launch.data, "--run", "one", "--wait"]
    out, _ = launch("train", *TINY, *arguments)
    assert re.search(r"mIoU \d", out)
    waiting = launch.start("evaluate", "one", "--sbatch", "hold=true", "--wait", "--json")
    assert waiting.stdout is not None
    job = json.loads(waiting.stdout.readline())["jobs"]["evaluate"]
    launch.slurm.run("scancel", job)
    _, error = waiting.communicate(timeout=300)
    assert waiting.returncode == 1
    assert f"evaluate job {job} CANCELLED" in error
