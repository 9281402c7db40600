"""From the user's input to a list of images, each with its mask or annotations, and its split."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from jobs.catalog import listing
from jobs.catalog.classes import Classes
from jobs.prepare.own import drawing, label_studio, masks
from jobs.prepare.own.findings import Finding, error, label_of, visible, warning
from jobs.prepare.own.images import MOST_PIXELS, SUFFIXES, BadPicture, read_file
from jobs.prepare.own.naming import Names, alike, composed, files_below, unlistable
from jobs.run.errors import MALFORMED, UserError

SPLITS = ("train", "val")


class Item(msgspec.Struct):
    """An image and the source of its labels."""

    name: str
    """The image's path below its folder, with forward slashes."""
    image: str
    mask: str = ""
    """The mask, or the file with the annotations."""
    kind: str = "labels"
    """`picture` of labels or colours, `coco`, `labelme`, `label-studio`."""
    shapes: list[Any] = []
    """Annotations: (class, shape) or (class, shape, id), in drawing order."""
    size: tuple[int, int] | None = None
    """(width, height) of the image according to the annotations, if they say it."""
    written: str = ""
    """The image's name in the COCO file."""
    split: str = ""
    folder: str = ""
    """The first part of `name`, if it is the folder of a split."""

    @property
    def stem(self) -> str:
        return str(PurePosixPath(self.name).with_suffix(""))


def images_in(folder: Path) -> dict[str, Path]:
    """The images below a folder. Raises UserError if there are none, and says what is there."""
    found = files_below(folder, SUFFIXES)
    if not found:
        there = Counter(
            os.path.splitext(name)[1].lower() or "no suffix"
            for _, names in listing.walk(folder)
            for name in names
        )
        what = (
            ", ".join(f"{count:,} × {suffix}" for suffix, count in there.most_common(5)) or "no files at all"
        )
        raise UserError(
            f"--images {folder}: no images there ({what}); accepted suffixes are {' '.join(SUFFIXES)}"
        )
    bad = [f"'{visible(name)}' {what}" for name in found if (what := unlistable(name))]
    if bad:
        more = f" (and {len(bad) - 1:,} more such names)" if len(bad) > 1 else ""
        raise UserError(f"--images {folder}: {bad[0]}{more}: rename it, and its mask")
    return found


def collect(
    images: Path, given: list[Path], kind: str, suffix: str, classes: Classes
) -> tuple[list[Item], str, list[Finding]]:
    """(items sorted by name, the kind of the masks, findings). Raises UserError if nothing fits at all."""
    files = images_in(images)
    if images in given[0].parents and given[0].is_dir():  # masks in a subfolder of the images are not images
        files = {name: path for name, path in files.items() if given[0] not in path.parents}
        if not files:
            raise UserError(f"--images {images}: all images there are in the folder of --masks")
    kind = kind_of(given, files, suffix) if kind == "auto" else kind
    if suffix and kind != "picture":
        raise UserError(f"--mask-suffix is for masks that are images, and these are {kind}: leave it out")
    if kind == "coco":
        items, found = from_coco(files, given, classes)
    elif kind == "labelme":
        items, found = from_labelme(files, given, classes)
    elif kind == "label-studio":
        items, found = from_label_studio(files, given[0], classes)
    else:
        items, found = from_pictures(files, given, suffix)
    found += twins(items)
    return sorted(items, key=lambda item: item.name), kind, found


def kind_of(given: list[Path], images: dict[str, Path], suffix: str) -> str:
    """coco, labelme, label-studio or picture, judged by the files there."""
    first = given[0]
    if first.is_file():
        return "coco"
    pictures = files_below(first, masks.SUFFIXES)
    if label_studio.is_export(list(pictures)):
        return "label-studio"
    found = files_below(first, [".json"])
    # Annotations may be beside the images, and so may masks, recognised by their suffix.
    if not found or not set(pictures.values()) <= (set() if suffix else set(images.values())):
        return "picture"
    content = parsed(next(iter(found.values())))
    if isinstance(content, dict) and "annotations" in content:
        return "coco"
    # JSON files not named like an image, such as meta.json, do not count as annotations.
    stems = {path.with_suffix("") for path in images.values()}
    some = any(path.with_suffix("") in stems for path in found.values())
    return "labelme" if some or not pictures else "picture"


def parsed(path: Path) -> Any:
    """The content of a JSON file. Raises UserError if it is not JSON."""
    try:
        return json.loads(read_file(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except BadPicture as error:
        raise UserError(f"{path} {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from None


def twins(items: list[Item]) -> list[Finding]:
    """Findings for images that would share one mask: a.jpg beside a.png."""
    by_stem: dict[str, str] = {}
    found = []
    for item in items:
        other = by_stem.setdefault(composed(item.stem), item.name)
        if other != item.name:
            found.append(error("same name", item.image, f"{other} has the same name", "rename one of them"))
    return found


# --- pictures ---


def from_pictures(files: dict[str, Path], given: list[Path], suffix: str) -> tuple[list[Item], list[Finding]]:
    folder = given[0]
    if not folder.is_dir():
        raise UserError(f"--masks {folder}: masks that are images are given as a folder")
    pictures = files_below(folder, (*masks.SUFFIXES, *masks.BLURRED))
    there = {name: path for name, path in pictures.items() if path.suffix.lower() in masks.SUFFIXES}
    paths = set(pictures.values())
    named = Names(pictures)
    ends = (suffix,) if suffix else (*masks.SUFFIXES, *masks.BLURRED)
    taken = set()
    items, found = [], []
    for name, path in files.items():
        stem = str(PurePosixPath(name).with_suffix(""))
        fitting = next((some for end in ends if (some := named.find(stem + end))), [])
        if len(fitting) > 1:
            text = f"{' and '.join(fitting)} are both named as it is"
            found.append(error("no mask", str(path), text, "move the wrong ones away"))
        elif fitting and pictures[fitting[0]] != path:
            taken.add(fitting[0])
            items.append(Item(name, str(path), str(pictures[fitting[0]]), "picture"))
        elif not (suffix and path in paths and composed(name).lower().endswith(composed(suffix).lower())):
            # If both are in one folder, a mask is not an image.
            text = f"there is no {folder / stem}{ends[0]}"
            found.append(error("no mask", str(path), text, "draw it, or move the image away"))
    of_images = {visible(item.mask) for item in items}  # as a.png beside a.jpg
    found = [one for one in found if one.file not in of_images]
    if not items:
        first = next(iter(files))
        wanted = f"{PurePosixPath(first).with_suffix('')}{ends[0]}"
        wanted += "" if suffix else f" (or {' '.join(masks.SUFFIXES[1:])})"
        example = next(iter(there or pictures), "no picture at all")
        raise UserError(
            f"--masks {folder}: no image has a mask of the same name there: {first} needs {wanted}, and "
            "there is "
            f"{example} (--mask-suffix says what follows the image's name in a mask's)"
        )
    images = {str(path) for path in files.values()}
    found += [
        warning("no image", str(path), "a mask without an image", "nothing trains on it")
        for name, path in there.items()
        if name not in taken and str(path) not in images
    ]
    return items, found


# --- annotations ---


def from_labelme(
    files: dict[str, Path], given: list[Path], classes: Classes
) -> tuple[list[Item], list[Finding]]:
    folder = given[0]
    there = files_below(folder, [".json"]) if folder.is_dir() else {folder.name: folder}
    named = Names(there)
    taken: set[Path] = set()
    items: list[Item] = []
    found: list[Finding] = []
    for name, path in files.items():
        fitting = named.find(str(PurePosixPath(name).with_suffix(".json")))
        if len(fitting) != 1:
            found.append(
                error("no mask", str(path), f"no JSON of its name in {folder}", "label it, or move it away")
            )
            continue
        annotation = there[fitting[0]]
        taken.add(annotation)
        item = Item(name, str(path), str(annotation), "labelme")
        try:
            content = parsed(annotation)
            read_labelme(item, content, classes, found)
        except (UserError, *MALFORMED) as problem:
            text = f"is no annotation of LabelMe's ({type(problem).__name__}: {problem})"
            text = str(problem) if isinstance(problem, UserError) else text
            found.append(error("bad annotation", str(annotation), text, "save it again"))
        items.append(item)
    if not there:
        raise UserError(f"--masks {folder}: no JSON files there")
    found += [
        warning("no image", str(path), "annotations without an image", "nothing trains on it")
        for path in there.values()
        if path not in taken
    ]
    return items, found


def read_labelme(item: Item, content: Any, classes: Classes, found: list[Finding]) -> None:
    if content.get("imageWidth") and content.get("imageHeight"):
        item.size = size_of(content["imageWidth"], content["imageHeight"])
    unknown: set[str] = set()
    for shape in content["shapes"]:
        label = label_of(str(shape["label"]), classes, item.mask, unknown, found)
        keep = {key: shape.get(key) for key in ("shape_type", "points", "mask")}
        if label is not None:
            item.shapes.append((label, keep))


def size_of(width: Any, height: Any) -> tuple[int, int]:
    """(width, height) from annotations. Raises one of MALFORMED for an invalid size."""
    size = (int(width), int(height))
    if not (min(size) > 0 and size[0] * size[1] <= MOST_PIXELS):
        raise ValueError(f"an image of {width}×{height}")
    return size


def from_label_studio(
    files: dict[str, Path], folder: Path, classes: Classes
) -> tuple[list[Item], list[Finding]]:
    pictures = {
        name: path for name, path in files_below(folder, [".png"]).items() if label_studio.is_export([name])
    }
    listed = [(path, parsed(path)) for path in files_below(folder, [".json"]).values()]
    drawn, found = label_studio.shapes(pictures, listed, files, classes)
    items = [
        Item(name, str(path), shapes[0][1]["file"], "label-studio", shapes)
        for name, path in files.items()
        if (shapes := drawn.get(name))
    ]
    text = f"no mask in {folder} is of its task"
    found += [
        error("no mask", str(path), text, "label it, or move it away")
        for name, path in files.items()
        if name not in drawn
    ]
    return items, found


def from_coco(
    files: dict[str, Path], given: list[Path], classes: Classes
) -> tuple[list[Item], list[Finding]]:
    """Finds images by path, or by bare name if that is unique."""
    listed = [
        one for path in given for one in (files_below(path, [".json"]).values() if path.is_dir() else [path])
    ]
    by_path, by_name = Names(files), Names(files, lambda name: PurePosixPath(name).name)
    items: dict[str, Item] = {}
    found: list[Finding] = []
    for path in listed:
        content = parsed(path)
        try:
            read_coco(path, content, files, (by_path, by_name), items, classes, found)
        except MALFORMED as problem:
            raise UserError(
                f"{path} is not a COCO JSON of segmentations ({type(problem).__name__}: {problem}): it needs "
                "images (id, file_name, width, height), categories (id, name) and annotations (image_id, "
                "category_id, segmentation)"
            ) from None
    for item in items.values():  # small objects are drawn over large ones, whichever file has them
        item.shapes = [shape for _, shape in sorted(item.shapes, key=lambda sized: -sized[0])]
    missing = [name for name in files if name not in items]
    found += [
        error("no mask", str(files[name]), "no annotation file lists it", "label it, or move it away")
        for name in missing
    ]
    if not items:
        raise UserError(f"--masks {listed[0]}: none of its images lies in the folder of --images")
    return list(items.values()), found


def read_coco(
    path: Path,
    content: dict[str, Any],
    files: dict[str, Path],
    named: tuple[Names, Names],
    items: dict[str, Item],
    classes: Classes,
    found: list[Finding],
) -> None:
    names = named_by_id(path, content, "categories", "name")
    named_by_id(path, content, "images", "file_name")
    by_id: dict[Any, Item | None] = {}
    written_of = [str(PurePosixPath(str(one["file_name"]).replace("\\", "/"))) for one in content["images"]]
    by_path = {name for written in written_of for name in named[0].find(written)}
    unknown: set[str] = set()
    for one, written in zip(content["images"], written_of, strict=True):
        same = named[0].find(written)
        if not same:
            same = named[1].find(PurePosixPath(written).name)
            # Frames of two films may have the same names: an image listed by path means no other.
            same = [] if len(same) == 1 and same[0] in by_path else same
        if len(same) != 1:
            text = f"lists {written}, which {'several folders have' if same else 'is not there'}"
            found.append(warning("no image", str(path), text, "nothing trains on it"))
            by_id[one["id"]] = None
            continue
        (name,) = same
        item = items.setdefault(name, Item(name, str(files[name]), str(path), "coco", written=written))
        if not same_image(item, written, path):
            other = "" if item.mask == str(path) else f"{item.mask} "
            text = f"lists {other}{item.written} and {written}, and there is {name} alone"
            fix = "call it the same in all if it is one image; else remove what is not among --images"
            found.append(error("image twice", str(path), text, fix))
        item.size = size_of(one["width"], one["height"])
        by_id[one["id"]] = item
    for number, one in enumerate(content["annotations"], 1):
        called, image, category = one.get("id", number), one["image_id"], one["category_id"]
        item_of = by_id.get(image)
        wrong = ""
        if image not in by_id:
            wrong = f"its image_id {image!r} is no image's id"
        elif category not in names:
            wrong = f"its category_id {category!r} is no category's id"
        if wrong:
            text = f"{f'{item_of.name}: ' if item_of else ''}annotation {called}: {wrong}"
            found.append(error("bad annotation", str(path), text, "remove it, or export them all again"))
            continue
        label = label_of(names[category], classes, str(path), unknown, found)
        if label is not None and item_of is not None:
            item_of.shapes.append((drawing.area_of(one), (label, one["segmentation"], called)))


def same_image(item: Item, written: str, path: Path) -> bool:
    """Whether a file that lists an image as `written` means the one listed first: in one file by the same
    name, across files also with fewer or more folders."""
    if item.mask == str(path):
        return item.written == written
    one, other = (f"/{alike(name)}" for name in (item.written, written))
    return one.endswith(other) or other.endswith(one)


def named_by_id(path: Path, content: dict[str, Any], kind: str, key: str) -> dict[Any, str]:
    """Id -> name of a file's images or categories. Raises UserError if two share an id, as in files that were
    concatenated: all annotations would belong to one."""
    named: dict[Any, str] = {}
    for one in content[kind]:
        name = str(one[key])
        if named.setdefault(one["id"], name) != name:
            raise UserError(
                f"{path}: two of its {kind} have the id {visible(repr(one['id']))}, "
                f"{visible(named[one['id']])} and {visible(name)}: give each an id of its own, or give "
                "each file that it was made from to --masks"
            )
    return named
