"""Other datasets by mmsegmentation's own converters, from small archives in the real layouts."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.prepare import verify
from jobs.prepare.state import state
from tests.local.test_prepare_survives import alive, mounted

ROOT = Path(__file__).parents[2]


def prepare(name: str, root: Path, archives: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = ["--dataset", name, "--data-root", str(root), "--archives", str(archives), *more]
    return subprocess.run(
        [sys.executable, "-m", "jobs.prepare", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def picture(kind: str, mode: str = "RGB", value: int = 7) -> bytes:
    buffer = io.BytesIO()
    shape = (16, 24, 3) if mode == "RGB" else (16, 24)
    Image.fromarray(np.full(shape, value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def pack(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    members = {
        "ADEChallengeData2016/objectInfo150.txt": b"Idx\tRatio\n",
        "ADEChallengeData2016/sceneCategories.txt": b"ADE_train_00000001 airport_terminal\n",
    }
    for split, short, number in (("training", "train", 6), ("validation", "val", 2)):
        for index in range(1, number + 1):
            name = f"ADE_{short}_{index:08d}"
            members[f"ADEChallengeData2016/images/{split}/{name}.jpg"] = picture("JPEG")
            members[f"ADEChallengeData2016/annotations/{split}/{name}.png"] = picture("PNG", "L", 150)
    (tmp_path / "archives").mkdir()
    pack(tmp_path / "archives/ADEChallengeData2016.zip", members)
    return tmp_path / "archives"


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    polygons = {
        "imgHeight": 16,
        "imgWidth": 24,
        "objects": [
            {"label": "road", "polygon": [[0, 8], [23, 8], [23, 15], [0, 15]]},
            {"label": "car", "polygon": [[2, 9], [8, 9], [8, 13], [2, 13]]},
            {"label": "ego vehicle", "polygon": [[0, 14], [23, 14], [23, 15], [0, 15]]},
        ],
    }
    images, labels = {"license.txt": b"", "README": b""}, {"license.txt": b"", "README": b""}
    for split, city, number in (("train", "aachen", 3), ("val", "lindau", 2), ("test", "berlin", 2)):
        for index in range(number):
            stem = f"{split}/{city}/{city}_{index:06d}_000019"
            images[f"leftImg8bit/{stem}_leftImg8bit.png"] = picture("PNG")
            labels[f"gtFine/{stem}_gtFine_polygons.json"] = json.dumps(polygons).encode()
            for kind in ("color", "instanceIds", "labelIds"):
                labels[f"gtFine/{stem}_gtFine_{kind}.png"] = picture("PNG", "L")
    (tmp_path / "archives").mkdir()
    pack(tmp_path / "archives/leftImg8bit_trainvaltest.zip", images)
    pack(tmp_path / "archives/gtFine_trainvaltest.zip", labels)
    return tmp_path / "archives"


def test_ade20k(ade: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    ended = prepare("ade20k", root, ade)
    assert ended.returncode == 2
    assert "sha1" in ended.stderr  # not the release, and it does not claim to be another archive
    ended = prepare("ade20k", root, ade, "--no-checksum")
    assert ended.returncode == 2
    assert "6 files, the release has 20,210" in ended.stderr
    assert not (root / "ade").exists()
    ended = prepare("ade20k", root, ade, "--no-checksum", "--partial")
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" in ended.stdout
    data = root / "ade/ADEChallengeData2016"
    assert len(list((data / "images/training").iterdir())) == 6
    assert len(list((data / "annotations/validation").iterdir())) == 2
    assert state(root, "ade").ready
    assert "was ready" in prepare("ade20k", root, ade).stdout
    assert prepare("ade20k", root, ade, "--verify", "deep").returncode == 0
    (data / "annotations/training/ADE_train_00000003.png").write_bytes(b"")
    ended = prepare("ade20k", root, ade, "--verify")
    assert ended.returncode == 2
    assert "ADE_train_00000003.png" in ended.stderr


def test_cityscapes(cityscapes: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    ended = prepare("cityscapes", root, cityscapes, "--partial", "--processes", "2")
    assert ended.returncode == 0, ended.stderr
    assert "CRC" in ended.stdout
    data = root / "cityscapes"
    for split, city, number in (("train", "aachen", 3), ("val", "lindau", 2), ("test", "berlin", 2)):
        assert len(list((data / f"gtFine/{split}/{city}").glob("*_labelTrainIds.png"))) == number
        assert len((data / f"{split}.txt").read_text().splitlines()) == number
    with Image.open(data / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelTrainIds.png") as image:
        labels = np.asarray(image)
    # trainIds: road 0, car 13, everything else void.
    assert {int(value) for value in np.unique(labels)} == {0, 13, 255}
    assert verify.deep(data) == []
    assert [path.name for path in root.iterdir()] == ["cityscapes"]


def test_a_converter_that_unpacks_by_itself(tmp_path: Path) -> None:
    members = {}
    for index in range(1, 15):
        for side in "LR":
            members[f"Image_{index:02d}{side}.jpg"] = picture("JPEG")
            for kind in ("1stHO", "2ndHO"):
                members[f"Image_{index:02d}{side}_{kind}.png"] = picture("PNG", "L", 255)
    archives = tmp_path / "archives"
    archives.mkdir()
    pack(archives / "CHASEDB1.zip", members)
    root = tmp_path / "data"
    ended = prepare("chase_db1", root, archives)
    assert ended.returncode == 0, ended.stderr
    data = root / "CHASE_DB1"
    # Two annotators: the converter writes both masks of an image.
    for split, number in (("training", 20), ("validation", 8)):
        assert len(list((data / "images" / split).iterdir())) == number
        assert len(list((data / "annotations" / split).iterdir())) == 2 * number
    with Image.open(data / "annotations/training/Image_01L_1stHO.png") as image:
        assert np.unique(np.asarray(image)).tolist() == [1]
    pack(archives / "CHASEDB1.zip", dict(list(members.items())[:30]))
    ended = prepare("chase_db1", tmp_path / "second", archives)
    assert ended.returncode == 2
    assert "chase_db1.py failed" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "second/CHASE_DB1").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", ["gtFine_trainvaltest.zip", "lacks"]),
        ("cut", ["gtFine_trainvaltest.zip", "damaged"]),
        ("escape", ["would leave the folder"]),
        ("other", ["gtFine_trainvaltest.zip"]),
        ("incomplete", ["gtFine/test"]),
    ],
)
def test_bad_archives(cityscapes: Path, tmp_path: Path, damage: str, words: list[str]) -> None:
    path = cityscapes / "gtFine_trainvaltest.zip"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:300] + bytes(64) + content[364:])
    elif damage == "escape":
        with zipfile.ZipFile(path, "a") as packed:
            packed.writestr("../escaped.txt", b"")
    elif damage == "other":
        path.write_bytes(b"<html>please log in</html>")
    else:
        with zipfile.ZipFile(path) as old:
            kept = {name: old.read(name) for name in old.namelist() if "/test/" not in name}
        pack(path, kept)
        (tmp_path / "data").mkdir()
    ended = prepare("cityscapes", tmp_path / "data", cityscapes, "--partial")
    assert ended.returncode == 2, ended.stdout
    assert len(ended.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in ended.stderr
    assert not (tmp_path / "data/cityscapes").exists()
    assert not (tmp_path / "escaped.txt").exists()


def test_unknown_dataset_is_told_what_there_is(tmp_path: Path) -> None:
    ended = prepare("imaginary", tmp_path / "data", tmp_path)
    assert ended.returncode == 2
    assert "cityscapes" in ended.stderr
    assert not (tmp_path / "data").exists()


def test_room_is_looked_at_before_anything_is_unpacked(ade: Path, tmp_path: Path) -> None:
    archive = ade / "ADEChallengeData2016.zip"
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("ADEChallengeData2016/large.bin", bytes(30 << 20))
    assert archive.stat().st_size < 1 << 20
    with mounted(tmp_path / "disk", "size=20m") as disk:
        ended = prepare("ade20k", disk, ade, "--no-checksum", "--partial")
        assert ended.returncode == 2
        assert "MB free and needs 31 MB more" in ended.stderr
        assert not [path for path in disk.rglob("*") if path.suffix in (".jpg", ".bin")]


CONVERTER = """
import multiprocessing, os, sys
from pathlib import Path

import numpy as np
from PIL import Image

def work(number):
    (archives / f"pid-{os.getpid()}").touch()
    at = 0
    while slow and not (archives / "end").exists():
        for folder, mode in (("images", "RGB"), ("annotations", "L")):
            (out / folder / "training").mkdir(parents=True, exist_ok=True)
            Image.new(mode, (4, 4)).save(out / folder / f"training/{number}-{at % 1000}.png")
        at += 1
    for folder, mode in (("images", "RGB"), ("annotations", "L")):
        (out / folder / "training").mkdir(parents=True, exist_ok=True)
        Image.new(mode, (4, 4)).save(out / folder / f"training/last-{number}.png")

archives, out = map(Path, sys.argv[1:])
slow = not (archives / "go").exists()
(archives / f"pid-{os.getpid()}").touch()
with multiprocessing.get_context("fork").Pool(2) as pool:
    pool.map(work, range(2), 1)
"""


def test_killed_while_a_converter_runs(tmp_path: Path) -> None:
    """Neither it nor its pool lives on, and a start that follows at once is not disturbed by them."""
    tools = tmp_path / "checkout/tools/dataset_converters"
    tools.mkdir(parents=True)
    (tmp_path / "checkout/mmseg").mkdir()
    (tmp_path / "checkout/mmseg/__init__.py").touch()
    (tools / "slow.py").write_text(CONVERTER)
    archives, root = tmp_path / "archives", tmp_path / "data"
    archives.mkdir()
    command = ["--dataset", "slow", "--converter-args", "{archives} {out}", "--archives", str(archives)]
    command = [sys.executable, "-m", "jobs.prepare", *command, "--data-root", str(root)]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "checkout")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    deadline = time.monotonic() + 60
    while len(list(root.glob(".prepare-slow/start-*/slow/annotations/training/*-20.png"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    converters = [int(path.name.removeprefix("pid-")) for path in archives.glob("pid-*")]
    assert len(converters) == 3
    (archives / "go").touch()
    try:
        again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        assert again.returncode == 0, again.stderr
        assert not [pid for pid in converters if alive(pid)]
    finally:
        (archives / "end").touch()
    masks = sorted(path.name for path in (root / "slow/annotations/training").iterdir())
    assert masks == ["last-0.png", "last-1.png"]
    assert [path.name for path in root.iterdir()] == ["slow"]
