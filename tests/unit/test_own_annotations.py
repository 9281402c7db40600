"""Annotations as programs write them: what is drawn, and what is told where it cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.run.errors import UserError
from tests import own_images
from tests.unit.test_own_images import expected, labels_of, make


def changed(file: Path, change: Any) -> None:
    """A JSON file whose content `change` alters in place."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# --- COCO ---


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("images", "two of its images have the id 0, scene_000.png and scene_001.png"),
        ("categories", "two of its categories have the id 10, square and disc"),
    ],
)
def test_one_id_for_two_of_coco_is_told(tmp_path: Path, kind: str, said: str) -> None:
    """As in files that were put together: all annotations would be of the one, and none of the other."""
    folder = own_images.write(tmp_path, 4, masks="coco")
    file = folder / "masks/instances.json"

    def same(content: Any) -> None:
        content[kind][1]["id"] = content[kind][0]["id"]

    changed(file, same)
    with pytest.raises(UserError) as refused:
        make(folder)
    assert f"{file}: {said}" in str(refused.value)


def test_an_entry_of_coco_that_stands_there_twice_is_one(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 4, masks="coco")
    changed(folder / "masks/instances.json", lambda content: content["images"].append(content["images"][0]))
    for labels, given in zip(labels_of(make(folder)).values(), expected(4), strict=True):
        assert (labels == given).mean() > 0.9999


def test_small_things_lie_on_large_ones_of_another_file(tmp_path: Path) -> None:
    """As with things in one file and what is behind them in another."""
    folder = own_images.write(tmp_path, 4, masks="coco")
    file = folder / "masks/instances.json"
    content = json.loads(file.read_text())
    for name, category, corner, far in (("a", 3, 30, 50), ("b", 10, 10, 60)):
        polygon = [corner, corner, far, corner, far, far, corner, far]
        drawn = [
            {"id": at, "image_id": image["id"], "category_id": category, "segmentation": [polygon]}
            for at, image in enumerate(content["images"])
        ]
        (folder / f"{name}.json").write_text(json.dumps({**content, "annotations": drawn}))
    for order in ("ab", "ba"):
        root = make(folder, "--masks", *(folder / f"{name}.json" for name in order))
        for labels in labels_of(root).values():
            assert (labels[30:50, 30:50] == 1).all()
            assert (labels[12:28, 12:58] == 2).all()
        (folder / "data").rename(tmp_path / order)
