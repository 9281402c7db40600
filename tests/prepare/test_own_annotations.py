"""Annotations as programs write them: what is drawn, and what is told where it cannot be meant."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.run.errors import UserError
from tests import own_images
from tests.prepare.test_own_images import expected, labels_of, make, told


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


@pytest.mark.parametrize("x", [97.5, -40])
def test_an_annotation_beside_its_image_is_told(tmp_path: Path, x: float) -> None:
    """Nothing would be drawn of it: it is another image's, or one's of another size. Of a thing in parts that
    a tile has cut, some may lie there."""
    folder = own_images.write(tmp_path, 4, masks="coco")
    beside = [x, 10, x + 30, 10, x + 30, 30]
    at_the_edge = [95.5, 10, 110, 10, 110, 30]

    def put(*rings: list[float]) -> None:
        file = folder / "masks/instances.json"
        changed(file, lambda content: content["annotations"][0].update(segmentation=rings))

    put(beside)
    assert f"a polygon lies outside of the image, from {x:g}, 10 on" in told(folder)["bad annotation"]
    for rings in ((at_the_edge,), (SQUARE, beside)):
        put(*rings)
        make(folder)
        (folder / "data").rename(tmp_path / f"before {len(rings)}")


SQUARE = [0.0, 0.0, 10.0, 0.0, 10.0, 10.0, 0.0, 10.0]


def test_images_of_two_files_of_coco_are_not_taken_for_one(tmp_path: Path) -> None:
    """Frames of two films, each with a file of its own, and there is one film. What is in two files of one
    image has the same name, with its folder or without."""
    folder = own_images.write(tmp_path, 4, masks="coco")
    first, second = folder / "masks/instances.json", folder / "masks/others.json"
    second.write_text(first.read_text())

    def below(top: str) -> Any:
        def put(content: Any) -> None:
            for image in content["images"]:
                image["file_name"] = f"{top}/{image['file_name'].split('/')[-1]}"

        return put

    changed(second, below("images"))
    assert len(labels_of(make(folder))) == 4
    (folder / "data").rename(tmp_path / "before")
    changed(first, below("one"))
    changed(second, below("another"))
    found = told(folder)["image twice"]
    assert f"{second} lists {first} one/scene_000.png and another/scene_000.png, and there is scene" in found


# --- LabelMe ---


def only(folder: Path, shape: dict[str, Any]) -> None:
    """The first image's annotation is this shape alone, of a disc."""
    shape = {"label": "disc", "group_id": None, "flags": {}, **shape}
    changed(folder / "masks/scene_000.json", lambda content: content.update(shapes=[shape]))


TURNED = [[30, 10], [50, 30], [30, 50], [10, 30]]


@pytest.mark.parametrize(
    ("kind", "points", "inside", "outside"),
    [
        # X-AnyLabeling's: all four corners.
        ("rectangle", [[10, 20], [50, 20], [50, 40], [10, 40]], [(11, 21), (49, 39)], [(11, 42)]),
        ("rotation", TURNED, [(30, 12), (30, 48), (12, 30)], [(12, 12), (48, 48)]),
        ("oriented_rectangle", TURNED, [(30, 12), (30, 48), (12, 30)], [(12, 12), (48, 48)]),
        # Two corners, whichever they are; a middle outside of the image.
        ("rectangle", [[50, 20], [10, 40]], [(11, 21), (49, 39)], [(11, 42)]),
        ("circle", [[-10, 30], [10, 30]], [(0, 30), (9, 30)], [(12, 30)]),
        # What a slip of the hand leaves in the corner.
        ("polygon", [[0, 0], [1, 0], [1, 1]], [(0, 0)], [(9, 9)]),
    ],
)
def test_labelmes_shapes(
    tmp_path: Path,
    kind: str,
    points: list[list[float]],
    inside: list[tuple[int, int]],
    outside: list[tuple[int, int]],
) -> None:
    folder = own_images.write(tmp_path, 4, masks="labelme")
    only(folder, {"shape_type": kind, "points": points})
    labels = labels_of(make(folder))["scene_000"]
    assert [labels[y, x] for x, y in inside] == [1] * len(inside)
    assert [labels[y, x] for x, y in outside] == [0] * len(outside)


@pytest.mark.parametrize(
    ("kind", "points", "said"),
    [
        ("rectangle", [[1, 1], [20, 1], [20, 20]], "a rectangle of 3 points"),
        ("circle", [[9, 9], [20, 9], [9, 20]], "a circle of 3 points"),
        ("rotation", [[1, 1], [20, 20]], "a rotation of 2 points"),
        ("linestrip", [[1, 1], [20, 1], [20, 20]], "a linestrip covers no area"),
        ("polygon", [[200, 1], [220, 1], [220, 20]], "a polygon lies outside of the image, from 200, 1 on"),
        ("circle", [[150, 9], [170, 9]], "a circle lies outside of the image"),
        ("polygon", [[0.1, 0.1], [0.9, 0.1], [0.9, 0.8]], "a polygon lies within one pixel: its corners"),
    ],
)
def test_labelmes_shapes_that_cannot_be_meant(
    tmp_path: Path, kind: str, points: list[list[float]], said: str
) -> None:
    folder = own_images.write(tmp_path, 4, masks="labelme")
    only(folder, {"shape_type": kind, "points": points})
    assert f"scene_000.json annotation 1: {said}" in told(folder)["bad annotation"]


@pytest.mark.parametrize(
    ("corner", "far", "rows", "columns"),
    [
        ((10, 20), (19, 24), (20, 25), (10, 20)),
        ((10.4, 20.6), (19.2, 24.4), (21, 26), (10, 20)),  # of LabelMe 6: no corner is rounded by itself
        ((-4, -2), (5, 2), (0, 3), (0, 6)),
        ((90, 61), (99, 65), (61, 64), (90, 96)),
    ],
)
def test_labelmes_masks_lie_where_their_first_corner_is(
    tmp_path: Path,
    corner: tuple[float, float],
    far: tuple[float, float],
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> None:
    folder = own_images.write(tmp_path, 4, masks="labelme")
    content = io.BytesIO()
    Image.new("L", (10, 5), 255).save(content, "PNG")
    mask = base64.b64encode(content.getvalue()).decode()
    only(folder, {"shape_type": "mask", "points": [corner, far], "mask": mask})
    wanted = np.zeros((64, 96), np.uint8)
    wanted[slice(*rows), slice(*columns)] = 1
    assert (labels_of(make(folder))["scene_000"] == wanted).all()
    (folder / "data").rename(tmp_path / "before")
    only(folder, {"shape_type": "mask", "points": [[200, 10], [209, 14]], "mask": mask})
    assert "a mask lies outside of the image, from 200, 10 on" in told(folder)["bad annotation"]


def test_annotations_without_an_image_are_told(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 4, masks="labelme")
    (folder / "masks/scene_000.json").rename(folder / "masks/scene_00O.json")
    found = told(folder)
    assert "scene_000.png no JSON of its name" in found["no mask"]
    assert "scene_00O.json annotations without an image" in found["no image"]


def test_labelmes_own_list_of_labels(tmp_path: Path) -> None:
    """Its labels.txt, and the masks of its labelme2voc, in which what is to be ignored is 255. Were that a
    class, each label would be the class before."""
    folder = own_images.write(tmp_path, 4)
    (folder / "classes.txt").write_text("__ignore__\n_background_\ndisc\nsquare\n")
    for labels, given in zip(labels_of(make(folder)).values(), expected(4), strict=True):
        assert (labels == given).all()
    annotated = own_images.write(tmp_path / "annotated", 4, masks="labelme")
    (annotated / "classes.txt").write_text("__ignore__\n_background_\ndisc\nsquare\n")
    points = [[10, 10], [40, 10], [40, 40], [10, 40]]
    only(annotated, {"label": "__ignore__", "shape_type": "polygon", "points": points})
    assert (labels_of(make(annotated))["scene_000"][12:38, 12:38] == 255).all()


@pytest.mark.parametrize("kind", ["labelme", "coco"])
def test_annotations_may_lie_beside_images_that_could_be_masks(tmp_path: Path, kind: str) -> None:
    """As LabelMe saves them, and Roboflow exports them: images that are PNGs are no masks of themselves."""
    folder = own_images.write(tmp_path, 4, masks=kind)
    for file in (folder / "masks").iterdir():
        file.rename(folder / "images" / file.name)
    for labels, given in zip(
        labels_of(make(folder, "--masks", folder / "images")).values(), expected(4), strict=True
    ):
        assert (labels == given).mean() > 0.985


def test_masks_in_a_folder_of_the_images(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 4)
    (folder / "masks").rename(folder / "images/masks")
    (folder / "images/masks/notes.json").write_text("{}")
    for labels, given in zip(
        labels_of(make(folder, "--masks", folder / "images/masks")).values(), expected(4), strict=True
    ):
        assert (labels == given).all()
    (folder / "data").rename(tmp_path / "before")
    for image in (folder / "images").glob("*.png"):
        image.unlink()
    with pytest.raises(UserError, match="all images there are in the folder of --masks"):
        make(folder, "--masks", folder / "images/masks")


# --- Label Studio ---


@pytest.mark.parametrize("minimal", [False, True])
def test_label_studios_tag_may_be_called_anything(tmp_path: Path, minimal: bool) -> None:
    """It is whatever the labelling interface calls it: <BrushLabels name="my-labels" …>. A slash in a label's
    name is a hyphen in the file's."""
    folder = own_images.write(tmp_path, 4, masks="label-studio")
    (folder / "classes.txt").write_text("background\nround/disc\nsquare\n")
    for mask in (folder / "masks").glob("*.png"):
        name = mask.name.replace("-tag-", "-my-labels-").replace("-disc-", "-round-disc-")
        mask.rename(mask.with_name(name.replace("-by-1-", "-by-someone@example.org-")))
    region = {"brushlabels": ["round/disc"], "rle": [0, 0], "format": "rle"}

    def as_exported(tasks: list[Any]) -> None:
        for at, task in enumerate(tasks):
            result = [{"from_name": "my-labels", "to_name": "image", "type": "brushlabels", "value": region}]
            task["annotations"] = [{"id": at, "result": result}]
            if minimal:
                tasks[at] = {"id": task["id"], "image": task["data"]["image"], "my-labels": [region]}
        tasks.insert(0, {"id": 1, "data": {"image": "other.png"}, "comment_authors": [7]})

    changed(folder / "masks/export.json", as_exported)
    for labels, given in zip(labels_of(make(folder)).values(), expected(4), strict=True):
        assert (labels == given).all()
    (folder / "data").rename(tmp_path / "before")
    (folder / "masks/export.json").write_text(
        json.dumps([{"id": 40, "data": {"image": "/x/scene_000.png"}, "annotations": [{"result": []}]}])
    )
    assert "'my-labels-round-disc' is no class" in told(folder)["class unknown"]
