"""Other datasets by mmsegmentation's own converters, from small archives in the real layouts."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.catalog.readiness import state
from jobs.catalog.recipes import RECIPES, converters
from jobs.prepare import verify
from jobs.prepare.converters import limit_is_too_short
from jobs.run.digests import digest
from jobs.slurm import calls as slurm
from tests.local.test_prepare_survives import mounted
from tests.support.cluster import processes

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
    assert "6 files, but the release has 20,210" in ended.stderr
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


# --- every other recipe, from archives in the layout of its instructions ---

IMAGE, MASK, LARGE = picture("JPEG"), picture("PNG", "L", 255), (512, 512)


def plain(kind: str, size: tuple[int, int] = (24, 16), mode: str = "RGB", colour: object = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind)  # type: ignore[arg-type]
    return buffer.getvalue()


def hrf(folder: Path) -> None:
    for kind, letter in (("healthy", "h"), ("glaucoma", "g"), ("diabetic_retinopathy", "dr")):
        names = [f"{number:02d}_{letter}" for number in range(1, 16)]
        pack(folder / f"{kind}.zip", {f"{name}.jpg": IMAGE for name in names})
        vessels = plain("TIFF", mode="L", colour=255)
        pack(folder / f"{kind}_manualsegm.zip", {f"{name}.tif": vessels for name in names})


def stare(folder: Path) -> None:
    for archive, ending in (("stare-images", ""), ("labels-ah", ".ah"), ("labels-vk", ".vk")):
        with tarfile.open(folder / f"{archive}.tar", "w") as tar:
            for number in range(1, 21):
                content = gzip.compress(plain("PPM", colour=(255, 255, 255)))
                entry = tarfile.TarInfo(f"im{number:04d}{ending}.ppm.gz")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    lines = [f"{digest(path, 'sha256')}  {path.name}\n" for path in sorted(folder.glob("*.tar"))]
    (folder / "SHA256SUMS").write_text("".join(lines))


def loveda(folder: Path) -> None:
    for split in ("Train", "Val", "Test"):
        members = {}
        for number, place in enumerate(("Rural", "Urban")):
            members[f"{split}/{place}/images_png/{number}.png"] = plain("PNG")
            if split != "Test":
                members[f"{split}/{place}/masks_png/{number}.png"] = plain("PNG", mode="L", colour=7)
        pack(folder / f"{split}.zip", members)


def potsdam(folder: Path) -> None:
    areas, image, labels = ("2_10", "2_13"), plain("TIFF", LARGE), plain("TIFF", LARGE, colour=(0, 255, 0))
    images = {f"2_Ortho_RGB/top_potsdam_{area}_RGB.tif": image for area in areas}
    pack(folder / "2_Ortho_RGB.zip", images)
    masks = {f"top_potsdam_{area}_label_noBoundary.tif": labels for area in areas}
    pack(folder / "5_Labels_all_noBoundary.zip", masks)
    # What else lies there must not be taken for a part of it.
    pack(folder / "other.zip", {"x.txt": b""})


def vaihingen(folder: Path) -> None:
    image, labels = plain("TIFF", LARGE), plain("TIFF", LARGE, colour=(0, 0, 255))
    name = "ISPRS_semantic_labeling_Vaihingen"
    areas = ("area1", "area2")
    pack(folder / f"{name}.zip", {f"top/top_mosaic_09cm_{area}.tif": image for area in areas})
    masks = {f"top_mosaic_09cm_{area}_noBoundary.tif": labels for area in areas}
    pack(folder / f"{name}_ground_truth_eroded_COMPLETE.zip", masks)


def isaid(folder: Path) -> None:
    parts, size = {"train": (1, 2, 3), "val": (1,), "test": (1, 2)}, (896, 896)
    for split, numbers in parts.items():
        for number in numbers:
            (folder / split / "images").mkdir(parents=True, exist_ok=True)
            members = {f"images/P{number:04d}.png": plain("PNG", size)}
            pack(folder / split / f"images/part{number}.zip", members)
        if split != "test":
            (folder / split / "Semantic_masks").mkdir()
            mask = plain("PNG", size, colour=(0, 0, 63))
            masks = {f"images/P{number:04d}_instance_color_RGB.png": mask for number in numbers}
            pack(folder / split / "Semantic_masks/images.zip", masks)


def refuge(folder: Path) -> None:
    disc = plain("BMP", mode="L", colour=128)
    for split, letter in (("Training", "g"), ("Validation", "V"), ("Test", "T")):
        names = [f"{letter}{number:04d}" for number in (1, 2)]
        images = {f"REFUGE-{split}400/{name}.jpg": IMAGE for name in names}
        pack(folder / f"REFUGE-{split}400.zip", images)
        archive = {"Training": "Annotation-Training400", "Validation": "REFUGE-Validation400-GT"}
        masks = {f"{split}/Disc_Cup_Masks/{name}.bmp": disc for name in names}
        pack(folder / f"{archive.get(split, 'REFUGE-Test-GT')}.zip", masks)


def coco_stuff10k(folder: Path) -> None:
    from scipy.io import savemat

    for name in ("images", "annotations", "imageLists"):
        (folder / name).mkdir()
    for split, names in (
        ("train", ("COCO_train2014_1", "COCO_train2014_2")),
        ("test", ("COCO_train2014_3",)),
    ):
        (folder / f"imageLists/{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            (folder / f"images/{name}.jpg").write_bytes(IMAGE)
            savemat(folder / f"annotations/{name}.mat", {"S": np.full((16, 24), 13, np.uint8)})


def coco_stuff164k(folder: Path) -> None:
    for split, names in (("train2017", ("1", "2")), ("val2017", ("3",))):
        for kind, ending, content in (("images", "jpg", IMAGE), ("annotations", "png", MASK)):
            (folder / kind / split).mkdir(parents=True)
            for name in names:
                (folder / kind / split / f"{name}.{ending}").write_bytes(content)


MADE: dict[Callable[[Path], None], tuple[str, int, set[int]]] = {
    # recipe: (folder of masks, how many, the labels in them)
    hrf: ("HRF/annotations/validation", 30, {1}),
    stare: ("STARE/annotations/training", 20, {1}),
    loveda: ("loveDA/ann_dir/val", 2, {7}),
    potsdam: ("potsdam/ann_dir/train", 1, {4}),
    vaihingen: ("vaihingen/ann_dir/val", 1, {2}),
    isaid: ("iSAID/ann_dir/train", 3, {1}),
    refuge: ("REFUGE/annotations/test", 2, {2}),
    coco_stuff10k: ("coco_stuff10k/annotations/train2014", 2, {12}),
    coco_stuff164k: ("coco_stuff164k/annotations/train2017", 2, {255}),
}


def test_every_recipe_is_tried() -> None:
    tried = {make.__name__ for make in MADE} | {"ade20k", "cityscapes", "chase_db1"}
    assert tried == set(RECIPES)


@pytest.fixture(scope="module")
def all_made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int, str]]:
    """recipe -> (data root, exit code, errors), all made at the same time."""
    top = tmp_path_factory.mktemp("all")
    # The two of COCO insist on their real number of files; theirs is all that is changed here.
    tools = top / "checkout/tools/dataset_converters"
    (top / "checkout/mmseg").mkdir(parents=True)
    (top / "checkout/mmseg/__init__.py").touch()
    shutil.copytree(converters()["hrf"].parent, tools)
    for path in tools.glob("coco_stuff*.py"):
        path.write_text(re.sub(r"^COCO_LEN = \d+", "COCO_LEN = 3", path.read_text(), flags=re.MULTILINE))
    running = {}
    for make in MADE:
        name = make.__name__
        archives = top / name / "archives"
        archives.mkdir(parents=True)
        make(archives)
        command = ["--dataset", name, "--data-root", top / name / "data", "--archives", archives]
        command = ["-m", "jobs.prepare", *command, "--partial", "--processes", "1"]
        running[name] = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(top / "checkout")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    ended = {}
    for name, process in running.items():
        _, errors = process.communicate(timeout=180)
        ended[name] = (top / name / "data", process.returncode, errors)
    return ended


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_a_recipe(make: Callable[[Path], None], all_made: dict[str, tuple[Path, int, str]]) -> None:
    root, code, errors = all_made[make.__name__]
    assert code == 0, errors
    folder, count, labels = MADE[make]
    masks = list((root / folder).glob("*_labelTrainIds.png" if "coco" in folder else "*"))
    assert len(masks) == count
    with Image.open(masks[0]) as image:
        assert {int(value) for value in np.unique(np.asarray(image))} == labels
    assert [path.name for path in root.iterdir()] == [folder.split("/")[0]]
    assert verify.deep(root / folder.split("/")[0]) == []


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


def test_a_time_limit_that_no_start_can_keep_ends_it() -> None:
    """A converter begins anew in each start, so its job would be requeued for ever."""
    hour = (1000.0, 4600.0)
    assert limit_is_too_short(1100, 4500, hour)
    assert not limit_is_too_short(1100, 3000, hour)  # preempted
    assert not limit_is_too_short(4000, 4500, hour)  # the download took the time
    assert not limit_is_too_short(1100, 4500, None)  # not a job of Slurm's


def test_a_job_is_told_its_times_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Slurm from 23.02 on."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert slurm.span() is None
    monkeypatch.setenv("SLURM_JOB_START_TIME", "1000")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "4600")
    assert slurm.span() == (1000.0, 4600.0)


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
    converters = [processes.identify(int(path.name.removeprefix("pid-"))) for path in archives.glob("pid-*")]
    assert len(converters) == 3
    (archives / "go").touch()
    try:
        again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        assert again.returncode == 0, again.stderr
        assert not [converter for converter in converters if converter and processes.alive(converter)]
    finally:
        (archives / "end").touch()
    masks = sorted(path.name for path in (root / "slow/annotations/training").iterdir())
    assert masks == ["last-0.png", "last-1.png"]
    assert [path.name for path in root.iterdir()] == ["slow"]
