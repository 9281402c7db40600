"""The preparation end to end, on small stand-ins in the real formats."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat

from jobs.catalog.readiness import state
from jobs.prepare import verify
from jobs.prepare.synthetic import make_lists

LISTS = make_lists(24, 8)


def ids(root: Path, name: str) -> list[str]:
    return (root / f"VOCdevkit/VOC2012/ImageSets/Segmentation/{name}.txt").read_text().splitlines()


def test_lists_are_sorted_and_validation_does_not_leak(voc_small: Path) -> None:
    assert ids(voc_small, "trainaug") == LISTS.trainaug
    assert ids(voc_small, "val") == LISTS.voc_val
    assert not set(ids(voc_small, "trainaug")) & set(LISTS.voc_val)
    # mmseg's pair of lists covers exactly what the guide's one list does.
    assert sorted(ids(voc_small, "train") + ids(voc_small, "aug")) == LISTS.trainaug


def test_every_listed_image_has_both_files(voc_small: Path) -> None:
    voc = voc_small / "VOCdevkit/VOC2012"
    for name in LISTS.trainaug:
        assert (voc / f"JPEGImages/{name}.jpg").is_file()
        assert (voc / f"SegmentationClassAug/{name}.png").is_file()
    for name in LISTS.voc:
        assert (voc / f"SegmentationClass/{name}.png").is_file()
    aug = {path.stem for path in (voc / "SegmentationClassAug").iterdir()}
    assert aug == set(LISTS.trainaug)


def test_masks_are_the_archives_pixels(voc_small: Path, voc_archives: Path) -> None:
    aug = voc_small / "VOCdevkit/VOC2012/SegmentationClassAug"
    checked = 0
    with tarfile.open(voc_archives / "benchmark.tgz") as tar:
        for member in tar:
            name = Path(member.name).stem
            if member.name.startswith("benchmark_RELEASE/dataset/cls/") and name in ids(voc_small, "aug"):
                content = io.BytesIO(tar.extractfile(member).read())  # type: ignore[union-attr]
                expected = loadmat(content)["GTcls"][0]["Segmentation"][0]
                with Image.open(aug / f"{name}.png") as image:
                    assert image.mode == "L"
                    np.testing.assert_array_equal(np.asarray(image), expected)
                checked += 1
    assert checked == len(ids(voc_small, "aug")) > 0
    own = voc_small / "VOCdevkit/VOC2012/SegmentationClass"
    for name in ids(voc_small, "train"):
        assert (aug / f"{name}.png").read_bytes() == (own / f"{name}.png").read_bytes()


def test_it_is_ready_and_sound(voc_small: Path) -> None:
    root = voc_small / "VOCdevkit"
    assert state(voc_small).ready
    assert verify.quick(root) == []
    assert verify.deep(root) == []
    lists = json.loads((root / "manifest.json").read_text())["lists"]
    assert lists["trainaug"]["count"] == 24
    # Neither work files nor a lock stay behind.
    assert [path.name for path in voc_small.iterdir()] == ["VOCdevkit"]
