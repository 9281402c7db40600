"""Images of one's own for tests: coloured shapes on noise, with masks of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CLASSES = "background 0 0 0\ndisc 220 60 40\nsquare #2846dc\n"
PALETTE = np.array([[0, 0, 0], [220, 60, 40], [40, 70, 220]], np.uint8)
SIZE = (96, 64)


def shapes(random: np.random.Generator) -> list[tuple[str, list[tuple[float, float]]]]:
    """A disc (its box) and a square (its box), which may overlap."""
    width, height = SIZE
    radius, side = (int(one) for one in random.integers(10, 18, 2))
    x, y = int(random.integers(0, width - 2 * radius)), int(random.integers(0, height - 2 * radius))
    left, top = int(random.integers(0, width - side)), int(random.integers(0, height - side))
    return [
        ("disc", [(x, y), (x + 2 * radius, y + 2 * radius)]),
        ("square", [(left, top), (left + side, top + side)]),
    ]


def draw(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """(H×W×3 image, H×W labels, shapes)."""
    drawn = shapes(random)
    mask = Image.new("L", SIZE)
    pen = ImageDraw.Draw(mask)
    pen.ellipse(drawn[0][1], fill=1)
    pen.rectangle(drawn[1][1], fill=2)
    labels = np.asarray(mask)
    image = random.integers(60, 110, (*labels.shape, 3)).astype(np.uint8)
    image[labels > 0] = PALETTE[labels[labels > 0]]
    return image, labels, drawn


def write(folder: Path, count: int = 20, suffix: str = ".png", masks: str = "labels") -> Path:
    """FOLDER/images, FOLDER/masks (`masks`: labels, colours, binary, coco, labelme, label-studio or none) and
    FOLDER/classes.txt. Returns the folder."""
    random = np.random.default_rng(1)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    (folder / "classes.txt").write_text(CLASSES)
    tasks: list[dict[str, Any]] = []
    coco: dict[str, list[Any]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 10, "name": "square"}, {"id": 3, "name": "disc"}],
    }
    for number in range(count):
        name = f"scene_{number:03d}"
        image, labels, drawn = draw(random)
        Image.fromarray(image).save(folder / "images" / f"{name}{suffix}")
        target = folder / "masks" / f"{name}.png"
        if masks == "labels":
            Image.fromarray(labels).save(target)
        elif masks == "colours":
            Image.fromarray(PALETTE[labels]).save(target)
        elif masks == "binary":
            Image.fromarray(np.where(labels, 255, 0).astype(np.uint8)).save(target)
        elif masks == "labelme":
            content = labelme(f"../images/{name}{suffix}", drawn)
            target.with_suffix(".json").write_text(json.dumps(content))
        elif masks == "label-studio":
            for label, kind in ((1, "disc"), (2, "square")):
                named = f"task-{number + 40}-annotation-{number + 7}-by-1-tag-{kind}-0.png"
                Image.fromarray((labels == label).astype(np.uint8) * 255).save(target.with_name(named))
            tasks.append({"id": number + 40, "data": {"image": f"/data/upload/1/3fd2a1b0-{name}{suffix}"}})
        elif masks == "coco":
            add_to_coco(coco, number, f"{name}{suffix}", drawn)
    if masks == "label-studio":
        (folder / "masks" / "export.json").write_text(json.dumps(tasks))
    if masks == "coco":
        (folder / "masks" / "instances.json").write_text(json.dumps(coco))
    return folder


def labelme(image: str, drawn: list[Any]) -> dict[str, Any]:
    """As LabelMe 5 writes it."""
    kinds = {"disc": "circle", "square": "rectangle"}
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": [
            {
                "label": label,
                "points": middle_and_edge(box) if label == "disc" else [list(point) for point in box],
                "group_id": None,
                "description": "",
                "shape_type": kinds[label],
                "flags": {},
                "mask": None,
            }
            for label, box in drawn
        ],
        "imagePath": image,
        "imageData": None,
        "imageHeight": SIZE[1],
        "imageWidth": SIZE[0],
    }


def middle_and_edge(box: list[tuple[float, float]]) -> list[list[float]]:
    (left, top), (right, bottom) = box
    x, y = (left + right) / 2, (top + bottom) / 2
    return [[x, y], [right, y]]


def add_to_coco(coco: dict[str, list[Any]], number: int, name: str, drawn: list[Any]) -> None:
    """Discs as run-length encoding of pycocotools' own, squares as polygons."""
    from pycocotools import mask as codec

    coco["images"].append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
    (_, disc), (_, square) = drawn
    picture = Image.new("L", SIZE)
    ImageDraw.Draw(picture).ellipse(disc, fill=1)
    run = codec.encode(np.asfortranarray(np.asarray(picture)))
    run["counts"] = run["counts"].decode()
    (left, top), (right, bottom) = square
    polygon = [left, top, right + 1, top, right + 1, bottom + 1, left, bottom + 1]
    for category, segmentation, area in ((3, run, 900.0), (10, [polygon], 100.0)):
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]),
                "image_id": number,
                "category_id": category,
                "segmentation": segmentation,
                "area": area,
                "iscrowd": int(isinstance(segmentation, dict)),
            }
        )
