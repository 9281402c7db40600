"""A dataset of one's own: what is read, what is told, what is written. Real files of every kind."""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import shutil
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import tifffile
from PIL import Image

from jobs.catalog import classes, manifest
from jobs.catalog import own_images as options
from jobs.prepare import __main__ as command
from jobs.prepare import verify
from jobs.prepare.own import config_file, drawing, images, judge, masks, naming, scan, sheet, sources, splits
from jobs.prepare.own.findings import Finding
from jobs.prepare.own.pipeline import base_path, prepare_own
from jobs.prepare.packed import convert
from jobs.run.errors import UserError, one_line
from tests import own_images
from tests.mutations import in_time

ROOT = Path(__file__).resolve().parents[2]


def arguments(folder: Path, *more: object) -> argparse.Namespace:
    given = ["--data-root", folder / "data", "--dataset", "mine", "--images", folder / "images"]
    given += ["--classes", folder / "classes.txt", "--processes", 1]
    given += [] if "--masks" in more else ["--masks", folder / "masks"]
    return command.parser().parse_args([*map(str, given), *map(str, more)])


def make(folder: Path, *more: object) -> Path:
    prepare_own(arguments(folder, *more))
    return folder / "data" / "mine"


def told(folder: Path, *more: object) -> dict[str, str]:
    """Kind of finding -> the text of its first, of data that is refused."""
    with pytest.raises(UserError) as refused:
        make(folder, *more)
    assert not (folder / "data/mine").exists()
    table = folder / "data/.prepare-mine/findings.tsv"
    assert str(table) in str(refused.value)
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    return {row[1]: f"{row[2]} {row[3]} [{row[0]}] fix: {row[4]}" for row in reversed(rows)}


def labels_of(root: Path) -> dict[str, np.ndarray]:
    files = sorted(root.rglob("ann_dir/*/*.png"), key=lambda path: path.stem)
    return {path.stem: np.asarray(Image.open(path)) for path in files}


def expected(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [own_images.draw(random)[1] for _ in range(count)]


# --- classes.txt ---


def test_classes_and_what_names_them() -> None:
    found = classes.parse(
        "# mine\n\nbackground\ntraffic light #0000ff value=7\nroad 128 64, 128\nignore 1 2 3 value=9\n", "c"
    )
    assert found.names == ("background", "traffic light", "road")
    assert found.palette[1:] == ((0, 0, 255), (128, 64, 128))
    assert found.values == {7: 1, 9: 255, 0: 0, 2: 2, 255: 255}
    assert found.colours == {}, "one has no colour"
    cvat = classes.parse("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:1,2,3::\n", "c")
    assert cvat.names == ("background", "car")
    assert cvat.colours == {(0, 0, 0): 0, (1, 2, 3): 1}
    for head in ("name,r,g,b", "class_names, r, g, b", "Label;Red;Green;Blue"):
        # Were the first line a class, each label would be the class before.
        table = f"{head}\nsky,0,0,0\ncar; 1; 2; 3\n"
        assert classes.parse(table, "c")[:3:2] == (("sky", "car"), {0: 0, 1: 1, 255: 255})


@pytest.mark.parametrize(
    ("text", "names", "values"),
    [
        ("0 sky\n1 traffic light\n", ("sky", "traffic light"), {0: 0, 1: 1}),
        ("id,name,r,g,b\n0,sky,0,0,0\n1,car,1,2,3\n", ("sky", "car"), {0: 0, 1: 1}),
        ("ID;class_name\n7;sky\n11;car\n", ("sky", "car"), {7: 0, 11: 1}),
        ("7: sky\n11: car 1 2 3\n255: ignore\n", ("sky", "car"), {7: 0, 11: 1}),
        ('"sky, blue",0,0,0\n"12"" gun",1,2,3\n', ("sky, blue", '12" gun'), {0: 0, 1: 1}),
        ('"name","r","g","b"\n"sky","0","0","0"\n"car", "1", "2", "3"\n', ("sky", "car"), {0: 0, 1: 1}),
        ('"id","name"\n"7","sky"\n"11","car"\n', ("sky", "car"), {7: 0, 11: 1}),
        # What is no class has a number in the masks nevertheless.
        ("0 ignore\n1 sky\n2 car\n", ("sky", "car"), {0: 255, 1: 0, 2: 1}),
        ('0,sky\n1,"__ignore__"\n2,car\n', ("sky", "car"), {0: 0, 1: 255, 2: 1}),
        # Behind the name, and in columns that a first line names.
        ("sky,7\ntraffic light,11\n", ("sky", "traffic light"), {7: 0, 11: 1}),
        ("name;ID;r;g;b\r\nsky;7;0;0;0\r\ncar;11;1;2;3\r\n", ("sky", "car"), {7: 0, 11: 1}),
        ("Pixel Value, Class\n1, sky\n2, car\n", ("sky", "car"), {1: 0, 2: 1}),
        ("class,name\n7,sky\n11,car\n", ("sky", "car"), {7: 0, 11: 1}),
        (
            "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1576\t11664\t1172\t1\tsky\n2\t0.1\t6\t6\t1\ta, b;c\n",
            ("sky", "a, b;c"),
            {1: 0, 2: 1},
        ),
        ("id name r g b\n7 traffic light 1 2 3\n9 lane 1 2 3 4\n", ("traffic light", "lane 1"), {7: 0, 9: 1}),
        ("sep=;\nid;name;kind\n7;sky;up\n9;car;down\n;;\n", ("sky", "car"), {7: 0, 9: 1}),
        (",name,r,g,b\n0,sky,0,0,0\n1,car,1,1,1\n", ("sky", "car"), {0: 0, 1: 1}),
        ("7 -> sky\n9 -> car\n", ("sky", "car"), {7: 0, 9: 1}),
        ("1: 2-wheeler\n2: car\n", ("2-wheeler", "car"), {1: 0, 2: 1}),
        # These belong to the names.
        ("2-wheeler\n4-wheeler\n", ("2-wheeler", "4-wheeler"), {0: 0, 1: 1}),
        ("2.5 t\n7.5 kg\n", ("2.5 t", "7.5 kg"), {0: 0, 1: 1}),
        ("lane 1\nlane 2\n", ("lane 1", "lane 2"), {0: 0, 1: 1}),
        ("lane 1 9 0 0\nlane 2 0 9 0\n", ("lane 1", "lane 2"), {0: 0, 1: 1}),
        ("sky\n2 lanes\n", ("sky", "2 lanes"), {0: 0, 1: 1}),
        ("1 0 0 0\n2 1 2 3\n", ("1", "2"), {0: 0, 1: 1}),
        ("1 sky value=3\n2 car value=4\n", ("1 sky", "2 car"), {3: 0, 4: 1}),
        ("red\ngreen\n", ("red", "green"), {0: 0, 1: 1}),
        ("tree(dead)\ncover: tree(living)\n", ("tree(dead)", "cover: tree(living)"), {0: 0, 1: 1}),
        ("sky - 7\ncar -> 9\n", ("sky", "car"), {7: 0, 9: 1}),
    ],
)
def test_classes_behind_numbers_and_between_quotes(
    text: str, names: tuple[str, ...], values: dict[int, int]
) -> None:
    found = classes.parse(text, "c")
    assert (found.names, found.values) == (names, values | {255: 255})
    assert found.numbered == (found.values.keys() != {0, 1, 255})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one\n", "at least two are needed"),
        ("a\na\n", "line 2: the class 'a' appears twice"),
        ("a 1 2 3\nb 1 2 3\n", "line 2: the colour (1, 2, 3) is taken"),
        ("a value=1\nb\n", "'b' without `value`, so 1, is taken"),
        ("a 1 2 300\nb\n", "0 to 255"),
        ("3 a\n3 b\n", "line 2: value=3 is taken"),
        ("a value=70000\nb\n", "65535"),
        ("\n".join(f"c{n}" for n in range(300)), "at most 254 are possible"),
        # What could mean several things, or is no list of classes.
        ("sky,7,1,2,3\ncar,9,4,5,6\n", "a first line that names the columns (`name,id,r,g,b`) would tell"),
        ("sky,1,2,3,255\ncar,4,5,6,255\n", "can mean several things"),
        ("sky #010203 7\ncar #010204 9\n", "can mean several things"),
        ("5 0\n6 1\n", "can mean several things"),
        ("0,sky,nature\n1,car,thing\n", "each line has several names"),
        (
            "Klasse;Rot;Blau;Gelb\nsky;0;0;0\ncar;1;1;1\n",
            "line 1: 'Klasse;Rot;Blau;Gelb' is not as the other",
        ),
        ("Nr;Klasse;r;g;b\n7;sky;0;0;0\n9;car;1;1;1\n", "is `Nr` the masks' value?"),
        ("name,id,trainId\nsky,23,10\ncar,26,13\n", "columns `id` and `trainId` holds the mask values"),
        ("name,id\nsky,7\nplate,-1\n", "line 3: '-1' cannot be a mask value"),
        ("name,id,kind\nsky, blue,7,a\ncar,8,b\n", "line 2: it has 4 fields, and the first line 3"),
        ("name\nsky\ncar\n", "line 1: 'name' reads like the first line of a table"),
        ("train: ../train\nnc: 2\nnames: ['a', 'b']\n", "in YAML, JSON or Python"),
        ("names:\n  0: sky\n  1: car\n", "in YAML, JSON or Python"),
        ('[\n"sky",\n"car"\n]', "in YAML, JSON or Python"),
        ("labels = [\n    Label('sky', 0, 255),\n]", "in YAML, JSON or Python"),
        ("Label('sky', 0)\nLabel('car', 1)\n", "in YAML, JSON or Python"),
        ("classes = (\n'sky',\n'car')\n", "in YAML, JSON or Python"),
        ("dict(name=sky)\ndict(name=car)\n", "in YAML, JSON or Python"),
    ],
)
def test_classes_that_cannot_be_meant(text: str, said: str) -> None:
    with pytest.raises(UserError, match=r"c\.txt") as refused:
        classes.parse(text, "c.txt")
    assert said in str(refused.value)


def test_colours_wherever_they_stand() -> None:
    for text in (
        "64 128 64\tsky\n192 0 128\ttraffic light\n",
        "sky (64, 128, 64)\ntraffic light [192,0,128]\n",
        'color,name\n"64,128,64",sky\n#c00080,traffic light\n',
        "r g b name\n64 128 64 sky\n192 0 128 traffic light\n",
    ):
        found = classes.parse(text, "c")
        assert found.names == ("sky", "traffic light")
        assert found.colours == {(64, 128, 64): 0, (192, 0, 128): 1}


def test_classes_in_the_encodings_of_excel(tmp_path: Path) -> None:
    text = "id\tname\r\n7\tStraße\r\n9\tcar\r\n"
    for encoding in ("utf-16", "utf-8-sig"):
        (tmp_path / "c.txt").write_bytes(text.encode(encoding))
        assert classes.read(tmp_path / "c.txt").values == {7: 0, 9: 1, 255: 255}
    for encoding in ("cp1252", "utf-16-le"):
        (tmp_path / "c.txt").write_bytes(text.encode(encoding))
        with pytest.raises(UserError, match=r"is not text \(UTF-8\): save it as that"):
            classes.read(tmp_path / "c.txt")


# --- masks of every kind give the same labels ---


@pytest.mark.parametrize("kind", ["labels", "colours", "coco", "labelme", "label-studio"])
def test_masks_of_every_kind(tmp_path: Path, kind: str) -> None:
    folder = own_images.write(tmp_path, 6, masks=kind)
    root = make(folder)
    found = labels_of(root)
    for labels, name in zip(expected(6), sorted(found), strict=True):
        assert (found[name] == labels).mean() > (0.985 if kind == "labelme" else 0.9999), name
    description = json.loads((root / "dataset.json").read_text())
    assert description["masks"] == kind
    assert verify.deep(root, 1) == []


def test_cvats_segmentation_masks_with_its_own_labelmap(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 5, masks="colours")
    lines = [
        "# label:color_rgb:parts:actions",
        "background:0,0,0::",
        "disc:220,60,40::",
        "square:40,70,220::",
    ]
    (folder / "classes.txt").write_text("\n".join(lines) + "\n")
    found = labels_of(make(folder))
    assert [
        (found[name] == labels).all() for name, labels in zip(sorted(found), expected(5), strict=True)
    ] == [True] * 5


def test_binary_masks_are_seen_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = own_images.write(tmp_path, 5, masks="binary")
    (folder / "classes.txt").write_text("background\nthing\n")
    found = labels_of(make(folder))
    assert [set(np.unique(one)) for one in found.values()] == [{0, 1}] * 5
    assert "255 is taken for 'thing'" in capsys.readouterr().out


def test_0_255_masks_for_three_classes_are_no_green_run(tmp_path: Path) -> None:
    found = told(own_images.write(tmp_path, 5, masks="binary"))
    assert "have 'background' only" in found["one class only"]


def test_masks_of_16_bits_and_of_values_of_ones_own(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 5)
    (folder / "classes.txt").write_text(
        "background value=0\ndisc value=300\nsquare value=7\nignore value=9\n"
    )
    for mask in (folder / "masks").iterdir():
        labels = np.array([0, 300, 7, 9], np.uint16)[np.asarray(Image.open(mask))]
        labels[0] = 9
        Image.fromarray(labels).save(mask)
    for labels, given in zip(labels_of(make(folder)).values(), expected(5), strict=True):
        assert (labels[1:] == given[1:]).all()
        assert (labels[0] == 255).all()


def save_with_palette(mask: Path, order: list[int]) -> None:
    """The mask as a palette picture whose value i has the colour of the class order[i]."""
    values = np.argsort(order)[np.asarray(Image.open(mask))].astype(np.uint8)
    picture = Image.fromarray(values)
    picture.putpalette(own_images.PALETTE[order].ravel().tolist())
    picture.save(mask)


def test_a_palette_that_says_something_else_than_its_values(tmp_path: Path) -> None:
    """As ImageMagick saves pictures of colours: with the colours in any order, of each file another."""
    folder = own_images.write(tmp_path, 6)
    for number, mask in enumerate(sorted((folder / "masks").iterdir())):
        save_with_palette(mask, [[0, 1, 2], [1, 2, 0], [2, 1, 0]][number % 3])
    found = told(folder)["colours contradict"]
    assert "scene_001.png is a palette picture: its value 0 has the colour of 'disc', and is 'back" in found
    assert "--mask-kind colours, or --mask-kind labels" in found
    for labels, given in zip(
        labels_of(make(folder, "--mask-kind", "colours")).values(), expected(6), strict=True
    ):
        assert (labels == given).all()
    shutil.rmtree(folder / "data")
    values = np.asarray(Image.open(folder / "masks/scene_001.png"))
    assert (labels_of(make(folder, "--mask-kind", "labels"))["scene_001"] == values).all()


def test_a_mask_that_is_all_black_among_those_of_colours(tmp_path: Path) -> None:
    """As optipng saves it: in grey, or with a bit."""
    folder = own_images.write(tmp_path, 6, masks="colours")
    (folder / "classes.txt").write_text("disc 220 60 40\nsquare 40 70 220\nbackground 0 0 0\n")
    for number, mode in enumerate(["L", "1", "LA"]):
        Image.new(mode, own_images.SIZE).save(folder / f"masks/scene_{number:03d}.png")
    found = told(folder)["colours contradict"]
    assert (
        "is grey, and others are of colours: its value 0 has the colour of 'background', and is 'dis" in found
    )
    masks_of = labels_of(make(folder, "--mask-kind", "colours"))
    assert [set(np.unique(masks_of[f"scene_{number:03d}"])) for number in range(3)] == [{2}] * 3
    shutil.rmtree(folder / "data")
    Image.new("L", own_images.SIZE, 1).save(folder / "masks/scene_000.png")
    assert "is a picture of labels" in told(folder, "--mask-kind", "colours")["colour unknown"]


def test_a_palette_among_colours_goes_by_its_own(tmp_path: Path) -> None:
    """It says what its values are, though black is another class's."""
    folder = own_images.write(tmp_path, 6, masks="colours")
    (folder / "classes.txt").write_text("disc 220 60 40\nsquare 40 70 220\nbackground 0 0 0\n")
    mask, order = folder / "masks/scene_000.png", [1, 2, 0]
    picture = Image.fromarray(np.argsort(order)[expected(1)[0]].astype(np.uint8))
    picture.putpalette(own_images.PALETTE[order].ravel().tolist())
    picture.save(mask)
    for labels, given in zip(labels_of(make(folder)).values(), expected(6), strict=True):
        assert (labels == np.argsort(order)[given]).all()


def test_a_grey_mask_among_those_of_colours_is_told_where_its_grey_is_no_class(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 6, masks="colours")
    (folder / "classes.txt").write_text("disc 220 60 40\nsquare 40 70 220\n")
    for number, mask in enumerate(sorted((folder / "masks").iterdir())):
        painted = own_images.PALETTE[np.maximum(expected(6)[number], 1)]
        Image.fromarray(painted).save(mask)
    Image.new("L", own_images.SIZE).save(folder / "masks/scene_000.png")
    table = (make(folder) / "findings.tsv").read_text()
    assert "scene_000.png\tis grey, and others are of colours: its values are taken for labels" in table
    shutil.rmtree(folder / "data")
    (folder / "classes.txt").write_text("black 0 0 0\ndisc 220 60 40\nsquare 40 70 220\n")
    assert "is grey" not in (make(folder) / "findings.tsv").read_text(), "either way it is black"


def test_a_palette_that_agrees_with_its_values_or_says_nothing(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 6)
    for number, mask in enumerate(sorted((folder / "masks").iterdir())):
        labels = np.asarray(Image.open(mask)).copy()
        labels[0] = 255
        palette = own_images.PALETTE if number % 2 else own_images.PALETTE + 7
        picture = Image.fromarray(labels)
        # What is ignored has a class's colour here, as white is in most palettes.
        picture.putpalette([*palette.ravel().tolist(), *[9] * 756, *own_images.PALETTE[1].tolist()])
        picture.save(mask)
    for labels, given in zip(labels_of(make(folder)).values(), expected(6), strict=True):
        assert (labels[1:] == given[1:]).all()
        assert (labels[0] == 255).all()


def test_labelme_polygons_masks_and_strangers(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 5, masks="labelme")
    first, second = sorted((folder / "masks").iterdir())[:2]
    content = json.loads(first.read_text())
    content["shapes"] = [
        {"label": "disc", "shape_type": "polygon", "points": [[10, 10], [30, 10], [30, 30], [10, 30]]}
    ]
    first.write_text(json.dumps(content))
    assert (labels_of(make(folder))["scene_000"][12:28, 12:28] == 1).all()

    shutil.rmtree(folder / "data")
    content["shapes"][0]["points"] = [[1, 1]]
    first.write_text(json.dumps(content))
    stranger = json.loads(second.read_text())
    stranger["shapes"][0]["label"] = "dics"
    second.write_text(json.dumps(stranger))
    found = told(folder)
    assert "a polygon of 1 points" in found["bad annotation"]
    assert "'dics' is no class" in found["class unknown"]
    assert second.name in found["class unknown"]


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ([[1, 2, 3]], "3 numbers"),
        ([], "no polygon"),
        ([[0, 0, 1e9, 0, 3, 3]], "far outside"),
        ({"size": [10, 10], "counts": [100]}, "RLE is for [10, 10]"),
        ({"size": [64, 96], "counts": [5, 5]}, "does not have as many pixels"),
        ({"size": [64, 96], "counts": "zzzzzzzzzzzzzzz"}, "does not have as many"),
        ("oops", "scene_000.png: annotation 0: a polygon of 1"),
    ],
)
def test_coco_annotations_that_cannot_be_drawn(tmp_path: Path, segmentation: Any, said: str) -> None:
    folder = own_images.write(tmp_path, 4, masks="coco")
    file = folder / "masks/instances.json"
    content = json.loads(file.read_text())
    content["annotations"] = [dict(content["annotations"][0], segmentation=segmentation)]
    file.write_text(json.dumps(content))
    assert said in told(folder, "--masks", file)["bad annotation"]


SQUARE = [[0.0, 0.0, 10.0, 0.0, 10.0, 10.0, 0.0, 10.0]]


@pytest.mark.parametrize(
    ("annotation", "area"),
    [
        ({"area": 7, "segmentation": SQUARE}, 7),
        ({"segmentation": SQUARE}, 100),
        ({"area": 0, "segmentation": SQUARE * 2}, 200),
        ({"area": None, "segmentation": [[*reversed(SQUARE[0])]]}, 100),
        ({"segmentation": {"size": [2, 5], "counts": [1, 3, 2, 4]}}, 7),
        ({"segmentation": {"size": [64, 96], "counts": "R42"}}, 2),
        ({"segmentation": [], "bbox": [3, 3, 4, 5]}, 20),
        ({"area": "x", "segmentation": [[1, 2, 3]]}, 0),
    ],
    ids=str,
)
def test_the_area_of_a_coco_annotation(annotation: dict[str, Any], area: float) -> None:
    assert drawing.area_of(annotation) == area


def test_small_things_lie_on_large_ones_whether_or_not_an_area_is_given(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 4, masks="coco")
    file = folder / "masks/instances.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        small, large = ([[x, x, y, x, y, y, x, y]] for x, y in ((30, 50), (10, 60)))
        content["annotations"] += [
            {"id": image["id"] * 2 + 100, "image_id": image["id"], "category_id": 3, "segmentation": small},
            {"id": image["id"] * 2 + 101, "image_id": image["id"], "category_id": 10, "segmentation": large},
        ]
    content["annotations"] = content["annotations"][8:]
    file.write_text(json.dumps(content))
    for labels in labels_of(make(folder)).values():
        assert (labels[30:50, 30:50] == 1).all()
        assert (labels[12:28, 12:58] == 2).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": 77}, "instances.json annotation 5: its image_id 77 is no image's id"),
        (
            {"category_id": "77"},
            "instances.json scene_002.png: annotation 5: its category_id '77' is no category's id",
        ),
        ({"segmentation": [[1, 2, 3]]}, "instances.json scene_002.png: annotation 5: a polygon of 3 numbers"),
    ],
)
def test_a_wrong_coco_annotation_is_named_by_image_and_id(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    folder = own_images.write(tmp_path, 4, masks="coco")
    file = folder / "masks/instances.json"
    content = json.loads(file.read_text())
    content["annotations"][5] |= change
    file.write_text(json.dumps(content))
    assert said in told(folder)["bad annotation"]


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("labelme", {"imageWidth": -5}, "-5×"),
        ("labelme", {"imageWidth": 10**30}, "an image of"),
        ("labelme", {"imageWidth": float("inf")}, "is no annotation of LabelMe's"),
        ("labelme", {"imageWidth": 10**6, "imageHeight": 10**6}, "1000000×1000000"),
        ("labelme", {"shapes": [{"label": "\x1b[2J\x07", "points": []}]}, "no class"),
        ("labelme", {"shapes": [{"label": "disc", "points": [], "shape_type": "\ud800"}]}, "\\ud800"),
        ("labelme", {"shapes": [{"label": "disc", "points": [[10**400, 0]]}]}, "annotation 1"),
        ("coco", {"width": -96}, "-96×64"),
        ("coco", {"width": float("inf")}, "OverflowError"),
        ("coco", {"width": 10**6, "height": 10**6}, "1000000×1000000"),
        ("coco", {"file_name": "\x1b[2J\ud800.png"}, "no annotation file lists it"),
    ],
    ids=str,
)
def test_no_annotation_is_believed(
    kind: str, change: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of sizes that no memory has, numbers that no format has, and text that a terminal obeys. Images that
    sizes are for cannot be read either, so that nothing else bounds them."""
    folder = own_images.write(tmp_path, 4, masks=kind)
    file = sorted((folder / "masks").glob("*.json"))[0]
    content = json.loads(file.read_text())
    (content["images"][0] if kind == "coco" else content).update(change)
    file.write_text(json.dumps(content))
    if "shapes" not in change:
        (folder / "images/scene_000.png").write_bytes(b"no image")
    with pytest.raises(UserError) as refused:
        make(folder, *(["--masks", file] if kind == "coco" else []))
    table = folder / "data/.prepare-mine/findings.tsv"
    text = f"{refused.value}\n{table.read_text() if table.is_file() else ''}"
    assert said in text
    assert (text + capsys.readouterr().out).replace("\n", "").replace("\t", "").isprintable()


def test_a_mask_in_labelmes_json_is_not_decoded_before_its_size_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = io.BytesIO()
    Image.new("1", (9000, 9000)).save(content, "PNG")
    shape = {
        "shape_type": "mask",
        "points": [[0, 0], [3, 3]],
        "mask": base64.b64encode(content.getvalue()).decode(),
    }
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it is decoded"))
    with pytest.raises(masks.BadMask, match="9000×9000"):
        drawing.draw_labelme(np.zeros((20, 20), np.uint8), 1, shape)


def test_pipes_and_devices_are_named_and_not_waited_for(tmp_path: Path) -> None:
    """In a folder of somebody else's, say. A pipe without a writer would hold the job up; a device has no
    end."""
    folder = own_images.write(tmp_path, 5, masks="labels")
    for name, target in (("images/scene_000.png", ""), ("masks/scene_001.png", "/dev/zero")):
        (folder / name).unlink()
        if target:
            (folder / name).symlink_to(target)
        else:
            os.mkfifo(folder / name)
    with in_time(100):
        found = told(folder)
    assert "scene_000.png is no file but a pipe" in found["unreadable image"]
    assert "scene_001.png is no file but a pipe" in found["unreadable mask"]
    (folder / "notes").mkdir()
    os.mkfifo(folder / "notes/scene_000.json")
    with in_time(100), pytest.raises(UserError, match=r"scene_000\.json is no file but a pipe"):
        make(folder, "--masks", folder / "notes")


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_link_to_nothing_is_told(tmp_path: Path, kind: str) -> None:
    folder = own_images.write(tmp_path, 5)
    link = folder / kind / "scene_002.png"
    link.unlink()
    link.symlink_to(tmp_path / "purged")
    assert any(f"{link} is not there" in text for text in told(folder).values())


def test_links_that_lead_around_have_an_end(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path / "a", 4)
    for name in ("one", "two", "three"):
        (folder / "images" / name).symlink_to(folder / "images")
    other = own_images.write(tmp_path / "b", 2)
    (folder / "images/more").symlink_to(other / "images")
    (folder / "masks/more").symlink_to(other / "masks")
    assert len(sources.images_in(folder / "images")) == 6
    assert len(list(make(folder).rglob("ann_dir/*/**/*.png"))) == 6


@pytest.mark.parametrize("kind", ["labelme", "coco"])
def test_an_unknown_class_is_told_once_a_file_without_a_look_at_all_findings(
    kind: str, tmp_path: Path
) -> None:
    """Of 100,000 files that would be 14 minutes."""

    class Findings(list[Finding]):
        def __contains__(self, _: object) -> bool:
            raise AssertionError("all of them are looked at")

    folder = own_images.write(tmp_path, 2, masks=kind)
    known, found = classes.parse("background\nother\n", "classes.txt"), Findings()
    if kind == "labelme":
        file = folder / "masks/scene_000.json"
        content = json.loads(file.read_text())
        sources.read_labelme(
            sources.Item("a", "a", str(file)), content | {"shapes": content["shapes"] * 2}, known, found
        )
    else:
        file = folder / "masks/instances.json"
        files = sources.images_in(folder / "images")
        named = naming.Names(files)
        sources.read_coco(file, json.loads(file.read_text()), files, (named, named), {}, known, found)
    assert sorted(one.text for one in found) == ["'disc' is no class", "'square' is no class"]


def of_another_film(entry: dict[str, Any], number: int) -> dict[str, Any]:
    return {**entry, "id": number, "file_name": f"another/{Path(entry['file_name']).name}"}


def test_cocos_annotations_of_another_film_are_not_drawn_on_its_namesakes(tmp_path: Path) -> None:
    """Frames of two films have the same names, and there is one film."""
    folder = own_images.write(tmp_path, 4, masks="coco")
    file = folder / "masks/instances.json"
    content = json.loads(file.read_text())
    content["images"] += [of_another_film(one, 50 + one["id"]) for one in content["images"]]
    whole = [0, 0, 96, 0, 96, 64, 0, 64]
    content["annotations"] += [
        {"id": 90 + number, "image_id": 50 + number, "category_id": 3, "area": 1, "segmentation": [whole]}
        for number in range(4)
    ]
    file.write_text(json.dumps(content))
    root = make(folder)
    for labels, given in zip(labels_of(root).values(), expected(4), strict=True):
        assert (labels == given).mean() > 0.98
    assert "lists another/scene_000.png, which is not there" in (root / "findings.tsv").read_text()

    shutil.rmtree(folder / "data")
    for one in content["images"][:4]:
        one["file_name"] = f"one/{one['file_name']}"
    file.write_text(json.dumps(content))
    said = "lists one/scene_000.png and another/scene_000.png, and there is scene_000.png alone"
    assert said in told(folder)["image twice"]


def test_label_studios_tasks_of_two_images_of_one_name_are_told(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 4, masks="label-studio")
    file = folder / "masks/export.json"
    content = json.loads(file.read_text())
    image = "/data/upload/1/0badcafe-scene_000.png"
    file.write_text(json.dumps([*content, {"id": 99, "data": {"image": image}}]))
    make(folder)  # of whose task there are no masks
    shutil.rmtree(folder / "data")
    mask = folder / "masks/task-40-annotation-7-by-1-tag-disc-0.png"
    shutil.copy(mask, folder / "masks/task-99-annotation-90-by-1-tag-disc-0.png")
    found = told(folder)["image twice"]
    assert f"its task's image is {image}, another's /data/upload/1/3fd2a1b0-scene_000.png" in found


def test_label_studios_pngs_need_to_be_told_what_image_a_task_is(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 4, masks="label-studio")
    export, mask = folder / "masks/export.json", folder / "masks/task-41-annotation-8-by-1-tag-disc-0.png"
    tasks = json.loads(export.read_text())
    export.unlink()
    with pytest.raises(UserError, match="JSON export"):
        make(folder)
    export.write_text("{}")
    with pytest.raises(UserError, match="JSON export"):
        make(folder)
    # As JSON_MIN has it, from a folder of the server's.
    local = [
        {"id": one["id"], "image": "/data/local-files/?d=x/" + one["data"]["image"][24:]} for one in tasks
    ]
    export.write_text(json.dumps(local[:3]))
    mask.rename(mask.with_name("task-41-annotation-8-by-1-tag-disk-0.png"))
    Image.new("L", (7, 5), 255).save(folder / "masks/task-42-annotation-9-by-1-tag-disc-0.png")
    found = told(folder)
    assert "'disk' is no class" in found["class unknown"]
    assert "is 7×5, its image 96×64" in found["sizes differ"]
    assert "scene_003.png no mask in" in found["no mask"]
    assert "no image of --images is task 43" in found["no image"]


def test_coco_that_is_none(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 4, masks="coco")
    (folder / "masks/instances.json").write_text('{"images": [{"id": 1}], "annotations": []}')
    with pytest.raises(UserError, match="is not a COCO JSON of segmentations"):
        make(folder)


# --- what is told ---


def test_every_mistake_is_told_with_file_and_fix(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 12)
    at: Callable[[str, int], Path] = lambda kind, number: folder / kind / f"scene_{number:03d}.png"  # noqa: E731
    at("masks", 0).unlink()
    at("images", 1).write_bytes(at("images", 1).read_bytes()[:700])
    labels = np.asarray(Image.open(at("masks", 2))).copy()
    labels[:5] = 7
    Image.fromarray(labels).save(at("masks", 2))
    Image.fromarray(np.asarray(Image.open(at("masks", 3)))[:, :80]).save(at("masks", 3))
    at("masks", 4).write_bytes(b"")
    Image.open(at("masks", 5)).save(folder / "masks/stray.png")
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    Image.fromarray(noise).save(at("masks", 6))
    found = told(folder)
    assert "no mask" in found
    assert "scene_000.png" in found["no mask"]
    assert "scene_001.png" in found["unreadable image"]
    assert "has the value 7 (480 pixels)" in found["label outside"]
    assert "is 80×64, its image 96×64" in found["sizes differ"]
    assert "scene_004.png" in found["unreadable mask"]
    assert "stray.png" in found["no image"]
    assert "[warning]" in found["no image"]
    assert "no class has the colour" in found["colour unknown"]
    assert all("fix: " in text and not text.endswith("fix: ") for text in found.values())


def test_exif_turned_images(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 6, suffix=".jpg")
    for image in (folder / "images").iterdir():
        exif = Image.Exif()
        exif[images.ORIENTATION] = 6
        Image.open(image).save(image, exif=exif)
    assert "as its EXIF orientation turns it" in told(folder)["EXIF turned"]
    shutil.rmtree(folder / "data")
    make(folder, "--ignore-exif")
    shutil.rmtree(folder / "data")
    for mask in (folder / "masks").iterdir():  # a quarter turn to the right, as a viewer shows it
        Image.open(mask).transpose(Image.Transpose.ROTATE_270).save(mask)
    make(folder)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_pillows(orientation: int) -> None:
    from PIL import ImageOps

    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    image = Image.fromarray(pixels)
    image.getexif()[images.ORIENTATION] = orientation
    assert (np.asarray(ImageOps.exif_transpose(image)) == images.turned(pixels, orientation)).all()


def test_near_duplicates_between_splits(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 10, suffix=".jpg")
    # Scenes, not noise: what a hash of 64 bits is made for.
    random = np.random.default_rng(5)
    for image in (folder / "images").iterdir():
        small = random.integers(0, 255, (6, 9, 3)).astype(np.uint8)
        Image.fromarray(small).resize(own_images.SIZE, Image.Resampling.BICUBIC).save(image, quality=95)
    copy = Image.open(folder / "images/scene_000.jpg").resize((90, 60)).resize(own_images.SIZE)
    copy.save(folder / "images/scene_001.jpg", quality=60)
    (folder / "train.txt").write_text("scene_000\nscene_002\nscene_003\nscene_004.jpg\n")
    root = make(folder, "--train-list", folder / "train.txt")
    rows = [line.split("\t") for line in (root / "findings.tsv").read_text().splitlines()]
    twins = [row for row in rows if row[1] == "in both splits"]
    assert [(Path(row[2]).name, "scene_000.jpg" in row[3]) for row in twins] == [("scene_001.jpg", True)]
    assert any(
        "in both splits" in line for line in json.loads((root / "manifest.json").read_text())["findings"]
    )


def test_classes_that_occur_nowhere_or_in_one_split(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 6)
    (folder / "classes.txt").write_text(own_images.CLASSES + "nowhere 9 9 9\nrare 8 8 8\n")
    labels = np.asarray(Image.open(folder / "masks/scene_005.png")).copy()
    labels[:9] = 4
    Image.fromarray(labels).save(folder / "masks/scene_005.png")
    (folder / "train.txt").write_text("\ufeffscene_000\r\nscene_001\r\n\r\n")
    root = make(folder, "--train-list", folder / "train.txt")
    text = (root / "findings.tsv").read_text()
    assert "no mask has 'nowhere'" in text
    assert "'rare' is in val only: it cannot be learnt" in text


# --- names ---


def rename_all(folder: Path, change: Callable[[str], str]) -> None:
    for file in sorted(folder.iterdir()):
        file.rename(file.with_name(change(file.name)))


def test_masks_are_found_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 4)
    rename_all(folder / "masks", lambda name: name.replace(".png", ".PNG"))
    assert len(labels_of(make(folder))) == 4
    shutil.rmtree(folder / "data")
    rename_all(folder / "masks", lambda name: name.replace(".PNG", "_m.Png"))
    assert len(labels_of(make(folder, "--mask-suffix", "_m.png"))) == 4
    shutil.rmtree(folder / "data")
    (folder / "masks/scene_000_m.pNG").write_bytes(b"")
    found = told(folder, "--mask-suffix", "_m.png")
    assert "scene_000_m.Png and scene_000_m.pNG are both" in found["no mask"]


@pytest.mark.parametrize("kind", ["labels", "labelme", "coco"])
def test_names_of_a_mac_are_the_same(tmp_path: Path, kind: str) -> None:
    """Its zips have ü as two characters, where what was typed elsewhere is one."""
    folder = own_images.write(tmp_path, 4, masks=kind)
    composed: Callable[[str], str] = lambda name: name.replace("scene", "größe")  # noqa: E731
    rename_all(folder / "images", lambda name: unicodedata.normalize("NFD", composed(name)))
    if kind == "coco":
        file = folder / "masks/instances.json"
        file.write_text(composed(file.read_text()))
    else:
        rename_all(folder / "masks", composed)
    (folder / "train.txt").write_text("größe_001\n")
    root = make(folder, "--train-list", folder / "train.txt")
    assert [unicodedata.normalize("NFC", one.stem) for one in (root / "img_dir/train").iterdir()] == [
        "größe_001"
    ]
    for labels, given in zip(labels_of(root).values(), expected(4), strict=True):
        assert (labels == given).mean() > 0.98


def test_masks_that_are_jpegs_are_told_so(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 4)
    for mask in sorted((folder / "masks").iterdir()):
        Image.open(mask).save(mask.with_suffix(".jpg"))
        mask.unlink()
    assert "scene_000.jpg is a JPEG, in which labels are blurred" in told(folder)["unreadable mask"]
    found = told(folder, "--mask-suffix", ".jpg")
    assert "scene_000.jpg is a JPEG, in which labels are blurred" in found["unreadable mask"]


def test_a_wrong_suffix_of_masks_is_told_with_what_was_looked_for(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 4)
    with pytest.raises(UserError, match=r"needs scene_000_lab\.png, and there is scene_000\.png"):
        make(folder, "--mask-suffix", "_lab.png")
    rename_all(folder / "masks", lambda name: f"m{name}")
    with pytest.raises(UserError, match=r"needs scene_000\.png \(or \.bmp .*there is mscene_000\.png"):
        make(folder)


def test_an_image_without_a_mask_beside_its_masks_is_told(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 4)
    for mask in (folder / "masks").iterdir():
        mask.rename(folder / "images" / f"{mask.stem}_m.png")
    (folder / "images/scene_002_m.png").unlink()
    found = told(folder, "--masks", folder / "images", "--mask-suffix", "_m.png")
    assert "scene_002.png there is no" in found["no mask"]


def test_any_name_that_a_list_can_have(tmp_path: Path) -> None:
    """As macOS names what is on the screen: with a narrow blank before AM."""
    import mmengine

    folder = own_images.write(tmp_path, 4)
    name = "Screenshot 2024-05-01 at 10.00.00\u202fAM"
    for kind in ("images", "masks"):
        (folder / kind / "scene_000.png").rename(folder / kind / f"{name}.png")
    root = make(folder)
    listed = {
        split: [line.strip() for line in mmengine.list_from_file(root / f"splits/{split}.txt")]
        for split in ("train", "val")
    }
    assert name in listed["train"] + listed["val"]
    assert all((root / f"img_dir/{split}/{one}.png").is_file() for split in listed for one in listed[split])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a\tb.png", r"'a\\tb.png' has a line's end, a tab"),
        ("a\nb.png", r"'a\\nb.png' has a line's end"),
        (" a.png", "' a.png' begins or ends with a blank"),
        ("a\u202f.png", r"'a\\u202f.png' begins or ends with a blank"),
        ("a\udcff.png", r"'a\\udcff.png' is no text in UTF-8"),
    ],
)
def test_a_name_that_no_list_can_have_is_told(tmp_path: Path, name: str, said: str) -> None:
    folder = own_images.write(tmp_path, 2)
    (folder / "images/scene_000.png").rename(folder / "images" / name)
    with pytest.raises(UserError, match=said):
        make(folder)


# --- splits ---


def items(names: list[str]) -> list[sources.Item]:
    return [sources.Item(name, name) for name in names]


def test_a_split_is_a_function_of_seed_and_names() -> None:
    names = [f"{number}.png" for number in range(100)]
    first = {one.name: one.split for one in splits.split(items(names), 0.7, 3, "", ("", ""))[0]}
    again = {one.name: one.split for one in splits.split(items(names[::-1]), 0.7, 3, "", ("", ""))[0]}
    other = {one.name: one.split for one in splits.split(items(names), 0.7, 4, "", ("", ""))[0]}
    assert first == again != other
    assert list(first.values()).count("train") == 70


def test_groups_stay_together() -> None:
    names = [f"patient{patient}_{number}.png" for patient in range(20) for number in range(5)]
    split, found = splits.split(items(names), 0.8, 0, r"patient(\d+)_", ("", ""))
    assert not found
    by_group: dict[str, set[str]] = {}
    for one in split:
        by_group.setdefault(one.name.split("_")[0], set()).add(one.split)
    assert all(len(splits) == 1 for splits in by_group.values())
    assert sum(one.split == "train" for one in split) == 80
    _, found = splits.split(items(["x.png"]), 0.8, 0, "patient", ("", ""))
    assert found[0].kind == "in no group"


@pytest.mark.parametrize(
    "folders", [("train", "val"), ("Train", "Val"), ("training", "validation"), ("TRAIN", "valid")]
)
def test_folders_are_the_split(tmp_path: Path, folders: tuple[str, str]) -> None:
    folder = own_images.write(tmp_path, 6)
    for number in range(6):
        for kind in ("images", "masks"):
            top = folder / kind / (folders[number % 2] if number < 5 else "test")
            top.mkdir(exist_ok=True)
            (folder / kind / f"scene_{number:03d}.png").rename(top / f"scene_{number:03d}.png")
    root = make(folder)
    names = [(root / f"splits/{split}.txt").read_text().split() for split in ("train", "val")]
    assert names == [["scene_000", "scene_002", "scene_004"], ["scene_001", "scene_003"]]
    assert f"neither {folders[0]}/ nor {folders[1]}/" in (root / "findings.tsv").read_text()
    assert (root / "ann_dir/val/scene_003.png").is_file()


@pytest.mark.parametrize(
    ("tops", "said"),
    [
        (["train", "test"], "folders train/, test/ look like a split, with none for val"),
        (["Train", "training", "val"], "Train/, training/, val/ look like a split, with several for one"),
        (["val", "test"], "none for train"),
    ],
)
def test_folders_that_may_be_the_split_are_not_mixed(tops: list[str], said: str) -> None:
    names = [f"{top}/{number}.png" for top in tops for number in range(5)]
    with pytest.raises(UserError) as refused:
        splits.split(items(names), None, 0, "", ("", ""))
    assert said in str(refused.value)
    assert not splits.split(items(names), 0.8, 0, "", ("", ""))[1], "drawn if told so"


@pytest.mark.parametrize("seed", [0, 3])
def test_a_seed_is_not_taken_where_folders_are_the_split(seed: int) -> None:
    names = ["Train/1.png", "val/2.png"]
    with pytest.raises(UserError, match="--seed: nothing is drawn, because the folders Train/ and val/"):
        splits.split(items(names), None, seed, "", ("", ""))
    assert len(splits.split(items(names), None, None, "", ("", ""))[0]) == 2
    assert len(splits.split(items(names), 0.8, seed, "", ("", ""))[0]) == 2, "drawn if told so"


def test_a_folder_of_one_split_is_told() -> None:
    drawn, found = splits.split(items(["train/1.png", "more/2.png", "3.png"]), None, 0, "", ("", ""))
    assert len(drawn) == 3
    assert [one.kind for one in found] == ["folders mixed"]
    drawn, found = splits.split(items(["train/1.png", "train/2.png"]), None, 0, "", ("", ""))
    assert (len(drawn), found) == (2, [])


def test_images_of_a_folder_and_beside_it_stay_apart(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 4)
    for kind in ("images", "masks"):
        (folder / kind / "train").mkdir()
        shutil.copy(folder / kind / "scene_000.png", folder / kind / "train/scene_001.png")
    (folder / "train.txt").write_text("scene_001.png\ntrain/scene_001.png\n")
    root = make(folder, "--train-list", folder / "train.txt")
    images_of = sorted((root / "img_dir/train").rglob("*.png"))
    assert [one.relative_to(root).as_posix() for one in images_of] == [
        "img_dir/train/scene_001.png",
        "img_dir/train/train/scene_001.png",
    ]


def test_lists_that_name_what_is_not_there(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 5)
    (folder / "train.txt").write_text("scene_000\nscene_099\n")
    (folder / "val.txt").write_text("scene_000\n")
    found = told(folder, "--train-list", folder / "train.txt", "--val-list", folder / "val.txt")
    assert "scene_099" in found["not there"]
    assert "scene_000" in found["in both lists"]


# --- images ---


def bands(pixels: np.ndarray) -> np.ndarray:
    wide = pixels.astype(np.uint16) * 200
    return np.concatenate([wide, wide[..., :2] // 3], axis=2)


def as_bands(path: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), bands(pixels), photometric="minisblack", planarconfig="contig")


def as_planes(path: Path, pixels: np.ndarray) -> None:
    planes = np.moveaxis(bands(pixels), -1, 0)
    tifffile.imwrite(path.with_suffix(".tif"), planes, photometric="minisblack")


def as_png16(path: Path, pixels: np.ndarray) -> None:
    cv2.imwrite(str(path.with_suffix(".png")), pixels[..., ::-1].astype(np.uint16) * 200)


def as_rgba16(path: Path, pixels: np.ndarray) -> None:
    alpha = np.full((*pixels.shape[:2], 1), 65535, np.uint16)
    wide = np.concatenate([pixels[..., ::-1].astype(np.uint16) * 200, alpha], 2)
    cv2.imwrite(str(path.with_suffix(".png")), wide)


def as_grey_and_alpha16(path: Path, pixels: np.ndarray) -> None:
    """By hand: neither Pillow nor OpenCV writes this kind."""
    wide = np.stack([pixels[..., 0].astype(np.uint16) * 200, np.full(pixels.shape[:2], 65535, np.uint16)], 2)
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in wide)
    header = struct.pack(">IIBBBBB", width, height, 16, 4, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.with_suffix(".png").write_bytes(content)


def as_tiff16(path: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), pixels[..., 0].astype(np.uint16) * 200, compression="zlib")


def as_lzw(path: Path, pixels: np.ndarray) -> None:
    cv2.imwrite(
        str(path.with_suffix(".tif")),
        pixels[..., ::-1].astype(np.uint16) * 200,
        [cv2.IMWRITE_TIFF_COMPRESSION, 5],
    )


def as_small_tiles(path: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="rgb", tile=(16, 16))


def as_white_is_0(path: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), 255 - pixels[..., 0], photometric="miniswhite")


def as_ycbcr(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).convert("YCbCr").save(path.with_suffix(".tif"))


def as_grey(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).convert("L").save(path.with_suffix(".jpg"), quality=95)


def as_gif(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).quantize(64).save(path.with_suffix(".gif"))


def as_either(path: Path, pixels: np.ndarray) -> None:
    suffix = ".jpg" if "2" in path.stem else ".png"
    Image.fromarray(pixels).save(path.with_suffix(suffix))


@pytest.mark.parametrize(
    ("save", "reader", "count", "suffix"),
    [
        (as_bands, "tiff", 5, ".tif"),
        (as_planes, "tiff", 5, ".tif"),
        (as_png16, "png16", 3, ".png"),
        (as_rgba16, "png16", 3, ".png"),
        (as_grey_and_alpha16, "png16", 1, ".png"),
        (as_tiff16, "tiff", 1, ".tif"),
        (as_lzw, "tiff", 3, ".tif"),
        (as_small_tiles, "colour", 3, ".png"),
        (as_white_is_0, "grey", 1, ".tif"),
        (as_ycbcr, "colour", 3, ".tif"),
        (as_grey, "grey", 1, ".jpg"),
        (as_gif, "colour", 3, ".png"),
        (as_either, "colour", 3, ""),
    ],
)
def test_images_of_every_kind_reach_the_training(
    tmp_path: Path, save: Callable[[Path, np.ndarray], None], reader: str, count: int, suffix: str
) -> None:
    """What the config's own loading steps give is what the files held."""
    folder = own_images.write(tmp_path, 5)
    given = {}
    for image in sorted((folder / "images").iterdir()):
        pixels = np.asarray(Image.open(image))
        image.unlink()
        save(image, pixels)
        (file,) = (folder / "images").glob(f"{image.stem}.*")
        given[image.stem] = images.read(file.read_bytes())
    root = make(folder)
    made = msgspec.json.decode((root / "dataset.json").read_bytes(), type=config_file.Description)
    assert (made.bands.reader, made.bands.bands, made.suffix) == (reader, count, suffix)
    step = eval(config_file.loader(made), {"dict": dict})
    for split in ("train", "val"):
        for name in (root / f"splits/{split}.txt").read_text().splitlines():
            path = root / f"img_dir/{split}/{name}{suffix}"
            pixels = loaded(step, path)
            swapped = "bgr_to_rgb=True" in config_file.preprocessor(made)
            pixels = pixels[..., ::-1] if swapped else pixels
            assert (pixels == given[name.split(".")[0]]).all(), path
    assert len(made.mean) == count
    every = np.concatenate(
        [
            given[name.split(".")[0]].reshape(-1, count)
            for name in (root / "splits/train.txt").read_text().split()
        ]
    ).astype(float)
    assert np.allclose(made.mean, every.mean(0), rtol=1e-3)
    assert np.allclose(made.std, every.std(0), rtol=1e-3)


def loaded(step: dict[str, Any], path: Path) -> np.ndarray:
    """H×W×bands, as mmcv's LoadImageFromFile reads a file (its transforms/loading.py)."""
    import mmcv

    pixels = mmcv.imfrombytes(
        path.read_bytes(),
        flag=step.get("color_type", "color"),
        backend=step.get("imdecode_backend", "cv2"),
    )
    return pixels[..., None] if pixels.ndim == 2 else pixels


def test_images_that_do_not_fit_together(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 5)
    odd = folder / "images/scene_002.png"
    as_png16(odd, np.asarray(Image.open(odd)))
    for number in (3, 4):  # grey beside colour is none of them
        grey = folder / f"images/scene_{number:03d}.png"
        Image.open(grey).convert("L").save(grey)
    assert "3 bands of uint16; most have 3 bands of uint8" in told(folder)["bands differ"]
    table = (folder / "data/.prepare-mine/findings.tsv").read_text()
    assert [line.split("\t")[2] for line in table.splitlines() if "bands differ" in line] == [str(odd)]


# --- what is left behind ---


def test_hard_links_unless_copies_are_asked_for_and_nothing_is_changed(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 5)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.*")}
    root = make(folder)
    name = (root / "splits/val.txt").read_text().split()[0]
    for kind, own in (("img_dir", "images"), ("ann_dir", "masks")):
        assert (root / kind / "val" / f"{name}.png").samefile(folder / own / f"{name}.png")
    shutil.rmtree(folder / "data")
    root = make(folder, "--copy")
    assert not any(path.stat().st_nlink > 1 for path in root.rglob("*.png"))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert not list((folder / "data").glob(".prepare*"))


def test_made_once_and_refused_for_other_files(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 5)
    assert not prepare_own(arguments(folder)).done_before
    assert prepare_own(arguments(folder)).done_before
    with pytest.raises(UserError, match="other files, classes or options"):
        make(folder, "--seed", 4)
    os.utime(folder / "images/scene_000.png", (1, 1))
    with pytest.raises(UserError, match="move it away"):
        make(folder)


@pytest.mark.parametrize("name", ["old", "rows", "pack"])
def test_a_dataset_may_be_called_as_what_a_preparation_makes_for_itself(tmp_path: Path, name: str) -> None:
    folder = own_images.write(tmp_path, 5)
    root = folder / "data" / name
    asked = arguments(folder, "--dataset", name)
    prepare_own(asked)
    (root / "notes.txt").write_text("mine")
    (root / "splits/val.txt").unlink()
    assert not prepare_own(asked).done_before, "made anew"
    assert convert.pack(folder / "data", name).packed
    assert verify.deep(root, 1) == []
    assert not convert.unpack(folder / "data", name).packed
    assert verify.deep(root, 1) == []
    assert (root / "notes.txt").read_text() == "mine"
    assert os.listdir(folder / "data") == [name]


def test_a_start_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_images.write(tmp_path, 6)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "there")

    with monkeypatch.context() as patch:
        patch.setattr(sheet, "page", full)
        with pytest.raises(OSError, match="No space"):
            make(folder)
    assert not (folder / "data/mine").exists()
    rows = folder / "data/.prepare-mine/rows.kept"
    rows.write_bytes(rows.read_bytes()[:-7])  # a torn end
    looked: list[str] = []
    real = scan.row_of

    def row_of(item: Any, *rest: Any) -> Any:
        looked.append(item.name)
        return real(item, *rest)

    monkeypatch.setattr(scan, "row_of", row_of)
    root = make(folder)
    assert len(looked) == 1, "only the one whose row was torn"
    assert verify.deep(root, 1) == []


def test_the_sheet_needs_nothing_from_outside_and_shows_every_class(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 6)
    (folder / "classes.txt").write_text("background\ndisc\n<square>\n")
    page = (make(folder) / "contact.html").read_text()
    assert "&lt;square&gt;" in page
    assert "<square>" not in page
    assert page.count("<figure>") == 9
    assert "http" not in page
    assert "<script" not in page


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (220, 60, 40)])
@pytest.mark.parametrize("shade", [20, 100, 240])
def test_the_sheet_shows_where_a_class_of_any_colour_is(colour: tuple[int, ...], shade: int) -> None:
    image, there = np.full((2, 2, 3), shade, np.uint8), np.array([[True, False]] * 2)
    shown = sheet.highlighted(image, there, np.array(colour, np.uint8)).astype(int)
    assert np.abs(shown[0, 0] - shown[0, 1]).max() > 30


def test_frequencies_and_their_weights() -> None:
    known = classes.parse("a\nb\nc\n", "c")
    rows = [scan.Row("", values={0: 60, 1: 40}), scan.Row("", values={0: 90, 255: 10})]
    pairs = [(sources.Item("x", "x", split="train"), row) for row in rows]
    shares, weights = judge.frequencies(pairs, known, known.values)
    assert shares == [round(150 / 190, 6), round(40 / 190, 6), 0.0]
    # a: 150 of 190 pixels where it is; b: 40 of 100; the median of both
    median = (150 / 190 + 0.4) / 2
    assert weights == [round(median / (150 / 190), 4), round(median / 0.4, 4), 1.0]


# --- the config ---


def described(**changed: Any) -> config_file.Description:
    values: dict[str, Any] = {
        "name": "mine",
        "request": "",
        "classes": ("a", "b'\"\\{{ fileBasename }}"),
        "palette": ((0, 0, 0), (1, 2, 3)),
        "bands": judge.Bands("colour", 3, "uint8"),
        "ignore_exif": False,
        "suffix": ".jpg",
        "images": {"train": 100, "val": 20},
        "short_side": 375,
        "mean": [1.0, 2.0, 3.0],
        "std": [1.0, 2.0, 3.0],
        "frequencies": [0.5, 0.5],
        "weights": [1.0, 2.0],
        "masks": "labels",
        "links": 0,
    }
    return config_file.Description(**values | changed)


HEADS = {
    "decode_head": {"num_classes": 21, "loss_decode": {"type": "CrossEntropyLoss"}},
    "auxiliary_head": {"num_classes": 21, "loss_decode": {}},
}
FROM_WEIGHTS = {**HEADS, "pretrained": "open-mmlab://resnet50_v1c"}


def test_the_config_says_what_the_data_is(tmp_path: Path) -> None:
    from mmengine.config import Config

    from jobs.mmseg import compat

    made = described(bands=judge.Bands("tiff", 5, "uint16"), mean=[1.0] * 5, std=[2.0] * 5)
    base = str(ROOT / "configs/demo.py")
    config = tmp_path / "mine.py"
    text = config_file.text_of(made, base, HEADS, config_file.crop_of(made, "", HEADS), True)
    config_file.place(config, "mine", text)
    cfg = Config.fromfile(str(config))
    assert cfg.model.backbone.in_channels == 5
    assert cfg.model.data_preprocessor["mean"] == [1.0] * 5
    assert cfg.model.data_preprocessor["size"] == cfg.crop_size == (352, 352)
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        assert (head.num_classes, head.ignore_index) == (2, 255)
        assert head.loss_decode.class_weight == [1.0, 2.0]
        assert head.loss_decode.type == "CrossEntropyLoss"
    assert cfg.train_dataloader.dataset.metainfo.classes == ("a", "b'\"\\{{ fileBasename }}")
    config.write_text(compat.formatted(cfg))  # as a run keeps it
    assert Config.fromfile(str(config)).val_dataloader == cfg.val_dataloader
    assert cfg.train_dataloader.drop_last
    assert cfg.train_dataloader.dataset.pipeline[0].imdecode_backend == "tifffile"
    assert "PhotoMetricDistortion" not in text
    assert cfg.test_dataloader.dataset.ann_file == "splits/val.txt"


@pytest.mark.parametrize(
    ("base", "heads"),
    [
        ("knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py", [3, 3, 3, 3, 3]),
        ("bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py", [3, 3, 3]),
        ("stdc/stdc1_4xb12-80k_cityscapes-512x1024.py", [3, 3, 3, 2]),
        ("ocrnet/ocrnet_hr18_4xb4-20k_voc12aug-512x512.py", [3, 3]),
        ("cgnet/cgnet_fcn_4xb4-60k_cityscapes-680x680.py", [3]),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_bases_are_fitted(tmp_path: Path, base: str, heads: list[int], weighted: bool) -> None:
    """Models of mmseg's own, built: the classes that each head tells apart."""
    from jobs.mmseg import compat

    compat.prepare()
    from mmengine.config import Config
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules
    from torch import nn

    register_all_modules()
    file = base_path(f"mmseg::{base}")
    colours = ((0, 0, 0), (1, 2, 3), (4, 5, 6))
    made = described(classes=("a", "b", "c"), palette=colours, weights=[1.0, 2.0, 3.0])
    (tmp_path / "mine.py").write_text(
        config_file.text_of(made, str(file), config_file.model_of(file), 96, weighted)
    )
    cfg = Config.fromfile(str(tmp_path / "mine.py"))
    cfg.model.pretrained = None
    for part in (cfg.model.backbone, cfg.model.backbone.get("backbone_cfg") or {}):
        part.pop("init_cfg", None)
    model = MODELS.build(cfg.model)
    parts = [one for name, one in model.named_modules() if hasattr(one, "num_classes") and "head" in name]
    drawing = [one.out_channels for one in parts if isinstance(getattr(one, "conv_seg", None), nn.Conv2d)]
    refining = [one.num_classes for one in parts if type(one).__name__ == "KernelUpdateHead"]
    assert sorted(drawing + refining, reverse=True) == heads
    losses = [one.loss_decode for one in parts if one.num_classes == 3 and hasattr(one, "loss_decode")]
    weights = {tuple(one.class_weight or ()) for one in losses if hasattr(one, "class_weight")}
    assert weights == ({(1.0, 2.0, 3.0)} if weighted else {()})


@pytest.mark.parametrize("asked", ["", "144"])
@pytest.mark.parametrize(
    ("base", "crop"),
    [
        ("ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py", 64),
        ("pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py", 64),
        ("unet/unet-s5-d16_fcn_4xb4-40k_hrf-256x256.py", 64),
        ("mobilenet_v3/mobilenet-v3-d8-s_lraspp_4xb4-320k_cityscapes-512x1024.py", 416),
        ("beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py", 64),
        ("mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py", 64),
    ],
)
def test_models_that_do_not_take_every_size_learn_and_are_evaluated(
    tmp_path: Path, base: str, crop: int, asked: str
) -> None:
    from jobs.mmseg import compat

    compat.prepare()
    import torch
    from mmengine.config import Config
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample
    from mmseg.utils import register_all_modules

    register_all_modules()
    made = described(short_side=90)
    file = base_path(f"mmseg::{base}")
    plain = config_file.model_of(file)
    if asked and crop > int(asked):
        with pytest.raises(UserError, match=f"--crop {asked}: the model of --base needs {crop} at least"):
            config_file.crop_of(made, asked, plain)
        return
    crop = int(asked or crop)
    assert config_file.crop_of(made, asked, plain) == crop
    (tmp_path / "mine.py").write_text(config_file.text_of(made, str(file), plain, crop, False))
    cfg = Config.fromfile(str(tmp_path / "mine.py"))
    cfg.model.pretrained = cfg.model.backbone.init_cfg = None
    if cfg.model.backbone.type in config_file.ONE_SIZE:  # smaller
        cfg.model.backbone.update(num_layers=4, embed_dims=48, out_indices=[0, 1, 2, 3])
        cfg.model.neck.update(embed_dim=48)
        cfg.model.decode_head.update(in_channels=[48] * 4, channels=32)
        cfg.model.auxiliary_head.update(in_channels=48, channels=32)
    model = MODELS.build(cfg.model)

    def batch(count: int, height: int, width: int) -> dict[str, Any]:
        zeros = PixelData(data=torch.zeros(1, height, width, dtype=torch.long))
        sample = SegDataSample(gt_sem_seg=zeros, gt_edge_map=zeros.clone())
        size = (height, width)
        sample.set_metainfo({"img_shape": size, "ori_shape": size, "pad_shape": size})
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        return {"inputs": [image] * count, "data_samples": [sample] * count}

    side = cfg.scale[1]
    assert side == 64
    losses = model(**model.data_preprocessor(batch(2, side, min(crop, 97)), training=True), mode="loss")
    assert all(torch.isfinite(value).all() for name, value in losses.items() if "loss" in name)
    model.eval()
    with torch.no_grad():
        (drawn,) = model.val_step(batch(1, side, 97))
    assert drawn.pred_sem_seg.shape == (side, 97)


def test_a_crop_that_the_bases_model_cannot_take_is_told() -> None:
    net = HEADS | {"backbone": {"type": "UNet", "downsamples": (True, True, True)}}
    with pytest.raises(UserError, match="--crop 100: the model of --base takes only multiples of 8"):
        config_file.crop_of(described(), "100", net)
    assert config_file.crop_of(described(), "104", net) == 104


def test_weights_of_the_bases_classes_are_left_out_of_each_of_several_losses(tmp_path: Path) -> None:
    from mmengine.config import Config

    file = base_path("mmseg::ddrnet/ddrnet_23_in1k-pre_2xb6-120k_cityscapes-1024x1024.py")
    text = config_file.text_of(described(), str(file), config_file.model_of(file), 96, False)
    (tmp_path / "mine.py").write_text(text)
    losses = Config.fromfile(str(tmp_path / "mine.py")).model.decode_head.loss_decode
    assert [(one.type, one.class_weight) for one in losses] == [("OhemCrossEntropy", None)] * 2


def test_the_weight_of_what_is_no_class_stays(tmp_path: Path) -> None:
    """Mask2Former's. (Its head needs a package that is not always there.)"""
    from mmengine.config import Config

    file = base_path("mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py")
    text = config_file.text_of(described(), str(file), config_file.model_of(file), 96, False)
    (tmp_path / "mine.py").write_text(text)
    head = Config.fromfile(str(tmp_path / "mine.py")).model.decode_head
    assert (head.num_classes, head.loss_cls.class_weight, head.loss_cls.loss_weight) == (2, [1, 1, 0.1], 2)


def test_a_head_that_cannot_be_fitted_is_told() -> None:
    model = {"decode_head": {"type": "VPDDepthHead"}}
    with pytest.raises(UserError, match=r"its decode_head \(VPDDepthHead\) has no num_classes"):
        config_file.text_of(described(), "b.py", model, 96, False)
    with pytest.raises(UserError, match=r"knows the classes by name \(text_encoder"):
        config_file.text_of(described(), "b.py", HEADS | {"text_encoder": {"type": "x"}}, 96, False)
    losses = {"decode_head": {"num_classes": 3, "loss_decode": [{}, {}]}}
    with pytest.raises(UserError, match="has several losses: give them by hand"):
        config_file.text_of(described(), "b.py", losses, 96, True)


def test_grey_images_get_pretrained_weights_and_many_bands_begin_without() -> None:
    grey = described(bands=judge.Bands("grey", 1, "uint8"), mean=[90.0], std=[50.0])
    text = config_file.text_of(grey, "b.py", HEADS, 96, False)
    assert "in_channels=1" in text
    assert "mean=[90.0]" in text
    assert 'color_type="grayscale"' in text
    text = config_file.text_of(grey, "b.py", FROM_WEIGHTS, 96, False)
    assert "in_channels" not in text
    assert "mean=[123.675, 116.28, 103.53]" in text
    assert "grayscale" not in text
    assert "PhotoMetricDistortion" not in text
    text = config_file.text_of(
        described(bands=judge.Bands("tiff", 4, "uint8")), "b.py", FROM_WEIGHTS, 96, False
    )
    assert "pretrained=None" in text
    assert "in_channels=4" in text


def test_a_config_that_the_user_changed_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mine.py"
    config_file.place(target, "mine", "a = 1\n")
    config_file.place(target, "mine", "a = 2\n")
    assert target.read_text().endswith("a = 2\n")
    target.write_text(target.read_text() + "b = 3\n")
    config_file.place(target, "mine", "a = 4\n")
    assert target.read_text().endswith("b = 3\n")
    assert "left as it is" in capsys.readouterr().out
    target.write_text("mine\n")
    config_file.place(target, "mine", "a = 4\n")
    assert target.read_text() == "mine\n"


def test_what_a_preparation_tells_at_its_end(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 5)
    Image.open(folder / "masks/scene_000.png").save(folder / "masks/stray.png")
    target = folder / "mine.py"
    more = ("--base", ROOT / "configs/demo.py", "--write-config", target)
    root = folder / "data/mine"
    first = {"warnings": 1, "findings": str(root / "findings.tsv"), "sheet": str(root / "contact.html")}
    assert prepare_own(arguments(folder, *more)).told == first | {"config": str(target)}
    target.write_text(target.read_text() + "b = 3\n")
    told = prepare_own(arguments(folder, *more, "--class-weights")).told
    assert "changed by hand and is left as it is: --class-weights changed nothing in it" in told.pop("note")
    assert told == first | {"config": str(target)}


def test_ignored_pixels_have_no_class_weight() -> None:
    import torch
    from torch.nn import functional

    from jobs.mmseg import compat

    compat.prepare()
    from jobs.mmseg.losses import weigh_ignored_pixels

    weigh_ignored_pixels()
    from mmseg.models.losses import CrossEntropyLoss

    torch.manual_seed(0)
    pred, label = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    weights = [0.5, 1.0, 3.0]
    loss = CrossEntropyLoss(class_weight=weights)
    whole = functional.cross_entropy(pred, label, torch.tensor(weights))
    assert torch.allclose(loss(pred, label, ignore_index=255), whole)
    label[:, 0] = 255
    part = functional.cross_entropy(pred, label, torch.tensor(weights), ignore_index=255)
    assert torch.allclose(loss(pred, label, ignore_index=255), part)
    label[:] = 255
    assert loss(pred, label, ignore_index=255) == 0


# --- the command line ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "{f}/images"], "needs --masks and --classes and --dataset NAME"),
        (["--split", "0.8"], "--split is for a dataset of your own"),
        (["--check", "x.py", "--images", "y"], "leave out --images"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, words: list[str], said: str) -> None:
    given = command.parser().parse_args([word.format(f=tmp_path) for word in words])
    given.dataset = None
    with pytest.raises(UserError) as refused:
        options.asked(given)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--dataset", "cityscapes"], "prepared from archives"),
        (["--dataset", "Mine!"], "a-z"),
        (["--images", "/nowhere"], "no such folder"),
        (["--split", "1.5"], "between 0 and 1"),
        (["--group-by", "("], "not a regular expression"),
        (["--val-list", "x"], "--train-list"),
        (["--train-list", "{f}/x", "--seed", "1"], "leave out --split, --seed and --group-by"),
        (["--crop", "7"], "from 32 to 8192"),
    ],
)
def test_mistakes_in_options_are_one_line(tmp_path: Path, more: list[str], said: str) -> None:
    folder = own_images.write(tmp_path, 2)
    (tmp_path / "x").touch()
    with pytest.raises(UserError) as refused:
        options.check(arguments(folder, *(word.format(f=tmp_path) for word in more)))
    assert said in str(refused.value) or "there is no such file" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_suffix_of_masks_that_are_no_pictures_is_refused(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 2, masks="labelme")
    with pytest.raises(UserError, match="--mask-suffix is for masks that are images, and these are labelme"):
        make(folder, "--mask-suffix", "_mask.png")


def test_what_lies_in_a_folder_without_images(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 2)
    for image in (folder / "images").iterdir():
        image.rename(image.with_suffix(".raw"))
    with pytest.raises(UserError, match=r"no images there \(2 × \.raw\)"):
        make(folder)


# --- --check ---


def test_what_a_value_becomes_is_mmsegs() -> None:
    from jobs.prepare.own.check import table_of

    assert table_of(3, None, False, 255) == {0: 0, 1: 1, 2: 2, 255: 255}
    assert table_of(2, None, True, 255) == {0: 255, 1: 0, 2: 1, 255: 255}
    assert table_of(1, {0: 255, 1: 0, 2: 255}, False, 255) == {0: 255, 1: 0, 2: 255, 255: 255}


def test_an_error_that_says_nothing_is_told_by_its_place() -> None:
    try:
        raise AssertionError
    except AssertionError as error:
        said = one_line(error)
    assert re.fullmatch(r"AssertionError at test_own_images\.py:\d+ \(raise AssertionError\)", said)
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("a\nb")) == "a b"


def test_a_manifest_keeps_its_findings(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 5)
    shutil.copy(folder / "masks/scene_000.png", folder / "masks/stray.png")
    found = manifest.read(make(folder))
    assert found is not None
    assert [line.split(":")[0] for line in found.findings] == ["no image"]
    assert masks.UNKNOWN not in range(classes.MOST)
