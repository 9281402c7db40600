"""From a folder of images and masks to a trained model, as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.prepare.packed import convert
from tests import own_images

ROOT = Path(__file__).resolve().parents[2]


def launch(tmp_path: Path, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "BATON"))}
    return subprocess.run(
        [sys.executable, f"launch/{script}.py", *map(str, arguments), "--cluster", "local", "--wait"],
        cwd=ROOT,
        env=kept | {"BATON_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )


def prepare(tmp_path: Path, given: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return launch(
        tmp_path,
        "prepare",
        *("--data-root", tmp_path / "data", "--dataset", "mine", "--images", given / "images"),
        *("--classes", given / "classes.txt", "--write-config", tmp_path / "mine.py"),
        *("--base", "configs/demo.py", "--masks", given / "masks", *arguments),
    )


def read_events(run: Path) -> dict[str, Any]:
    """The last event of each kind."""
    lines = (run / "events.jsonl").read_text().splitlines()
    return {event["event"]: event for event in map(json.loads, lines)}


@pytest.mark.parametrize("kind", ["colour", "many bands"])
def test_a_folder_becomes_a_model_without_another_edit(tmp_path: Path, kind: str) -> None:
    given = own_images.write(tmp_path / "given", 40, masks="colours")
    if kind == "many bands":
        import numpy as np
        import tifffile
        from PIL import Image

        for image in sorted((given / "images").iterdir()):
            pixels = np.asarray(Image.open(image)).astype(np.uint16) * 40
            bands = np.concatenate([pixels, pixels[..., :1] // 2, 9000 - pixels[..., 2:]], 2)
            file = image.with_suffix(".tif")
            tifffile.imwrite(file, bands, photometric="minisblack", planarconfig="contig")
            image.unlink()
    before = {path: path.read_bytes() for path in given.rglob("*") if path.is_file()}
    made = prepare(tmp_path, given, "--class-weights")
    assert made.returncode == 0, made.stdout + made.stderr
    assert {path: path.read_bytes() for path in given.rglob("*") if path.is_file()} == before
    last = made.stdout.splitlines()[-1]
    assert "  warnings=" in last
    for field, name in (("findings", "data/mine/findings.tsv"), ("sheet", "data/mine/contact.html")):
        assert f"  {field}={tmp_path / name}" in last
    assert f"  config={tmp_path / 'mine.py'}" in last

    arguments = ["--data-root", tmp_path / "data", "--config", tmp_path / "mine.py", "--gpus", 1]
    # Overlays of many bands are no pictures for the evaluation: there the validation's figure is looked at.
    more = ["--no-evaluation"] if kind == "many bands" else []
    trained = launch(tmp_path, "train", *arguments, "--run", "first", "--seed", 1, *more)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    found = read_events(tmp_path / "runs/first")
    if kind == "colour":
        assert found["evaluated"]["metrics"]["mIoU"] > 50
    assert found["validated"]["metrics"]["mIoU"] > 50

    checked = launch(tmp_path, "prepare", "--data-root", tmp_path / "data", "--check", tmp_path / "mine.py")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "check=config" in checked.stdout
    assert "files=40" in checked.stdout


def test_a_packed_dataset_is_handled_by_its_name_and_checked(tmp_path: Path) -> None:
    given = own_images.write(tmp_path / "given", 8)
    by_name = ("--data-root", tmp_path / "data", "--dataset", "mine")
    check = ("--data-root", tmp_path / "data", "--check", tmp_path / "mine.py", "--json")
    assert prepare(tmp_path, given).returncode == 0
    for arguments in ((*by_name, "--pack"), (*by_name, "--verify", "deep"), check):
        done = launch(tmp_path, "prepare", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "data/mine/packed.zip").exists()
    run = Path(json.loads(done.stdout.splitlines()[0])["path"])
    assert read_events(run)["verified"]["files"] == 8

    alone = launch(tmp_path, "prepare", *by_name)
    assert alone.returncode == 2
    assert "data/mine exists; --verify checks it" in alone.stderr

    again = prepare(tmp_path, given, "--crop", "32")
    assert again.returncode == 0, again.stdout + again.stderr
    assert (tmp_path / "data/mine/packed.zip").exists()
    assert "crop_size = (32, 32)" in (tmp_path / "mine.py").read_text()

    # A mistake is found in the container, too, and named by its place there.
    text = (tmp_path / "mine.py").read_text()
    fewer = text.replace("classes=classes", "classes=classes[:2]").replace("=palette", "=palette[:2]")
    (tmp_path / "mine.py").write_text(fewer)
    wrong = launch(tmp_path, "prepare", *check)
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    run = Path(json.loads(wrong.stdout.splitlines()[0])["path"])
    said = f"label outside\t{tmp_path}/data/mine/packed.zip/ann_dir/val/scene_"
    assert said in (run / "findings.tsv").read_text()

    done = launch(tmp_path, "prepare", *by_name, "--unpack")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "data/mine/packed.zip").exists()
    assert "images=8" in done.stdout


def test_mistakes_are_told_and_nothing_is_made(tmp_path: Path) -> None:
    given = own_images.write(tmp_path / "given", 8)
    (given / "masks/scene_003.png").unlink()
    (given / "images/scene_005.png").write_bytes((given / "images/scene_005.png").read_bytes()[:900])
    made = prepare(tmp_path, given, "--json")
    assert made.returncode == 2, made.stdout + made.stderr
    assert "scene_003.png" in made.stderr
    found = (tmp_path / "data/.prepare-mine/findings.tsv").read_text()
    assert "scene_003.png" in found
    assert "scene_005.png" in found
    assert not (tmp_path / "mine.py").exists()
    assert not (tmp_path / "data/mine").exists()
    run = Path(json.loads(made.stdout.splitlines()[0])["path"])
    assert read_events(run)["failed"]["exit_code"] == 2


def test_check_looks_at_what_any_config_reads(tmp_path: Path, voc_small: Path) -> None:
    checked = launch(tmp_path, "prepare", "--data-root", voc_small, "--check", "configs/demo.py")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "files=32" in checked.stdout

    # The same packed, and not there at all.
    shutil.copytree(voc_small / "VOCdevkit", tmp_path / "packed/VOCdevkit")
    convert.pack(tmp_path / "packed", "VOCdevkit")
    checked = launch(tmp_path, "prepare", "--data-root", tmp_path / "packed", "--check", "configs/demo.py")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "files=32" in checked.stdout
    checked = launch(tmp_path, "prepare", "--data-root", tmp_path / "none", "--check", "configs/demo.py")
    assert checked.returncode == 2, checked.stdout + checked.stderr
    missing = "data/VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt is not there"
    assert f"train_dataloader: its dataset PascalVOCDataset cannot be read: {missing}" in checked.stdout

    # A dataset class of the user's, in a layout of its own, with labels that are none.
    given = own_images.write(tmp_path / "data/shapes", 4)
    (tmp_path / "my_shapes.py").write_text(
        "from mmseg.datasets import BaseSegDataset\n"
        "from mmseg.registry import DATASETS\n"
        "@DATASETS.register_module()\n"
        "class MyShapes(BaseSegDataset):\n"
        "    METAINFO = dict(classes=('background', 'disc'), palette=[[0, 0, 0], [9, 9, 9]])\n"
        "    def __init__(self, **more):\n"
        "        super().__init__(img_suffix='.png', **more)\n"
    )
    (tmp_path / "mine.py").write_text(
        f"_base_ = {str(ROOT / 'configs/demo.py')!r}\n"
        "custom_imports = dict(imports=['my_shapes'])\n"
        "data = dict(_delete_=True, type='MyShapes', data_root='data/shapes', pipeline=[],\n"
        "            data_prefix=dict(img_path='images', seg_map_path='masks'))\n"
        "train_dataloader = dict(dataset=data)\n"
        "val_dataloader = dict(dataset=data)\n"
        "test_dataloader = val_dataloader\n"
    )
    checked = launch(
        tmp_path, "prepare", "--json", "--data-root", tmp_path / "data", "--check", tmp_path / "mine.py"
    )
    assert checked.returncode == 2, checked.stdout + checked.stderr
    run = Path(json.loads(checked.stdout.splitlines()[0])["path"])
    found = (run / "findings.tsv").read_text()
    assert f"label outside\t{os.path.relpath(given, tmp_path)}/masks/scene_000.png\thas the value 2" in found
    assert "num_classes=21, the dataset 2 classes" in found
