"""Label Studio's export "Brush labels to PNG": a PNG for each label of each task, nothing but the task in its
name; which image a task is, its JSON export says, which has to lie in the same folder.

    task-12-annotation-7-by-1-tag-car-0.png        above 0 is drawn; `tag` is the name of the labels in the
                                                   project's labelling interface
    export.json                                    [{"id": 12, "data": {"image": "/…/3fd2a1b0-street.jpg"}}]

Source: https://github.com/HumanSignal/label-studio-sdk, converter/brush.py (names of files) and
https://labelstud.io/guide/export (JSON and JSON_MIN).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from jobs.catalog.classes import Classes
from jobs.prepare.own.findings import Finding, error, label_of, warning
from jobs.prepare.own.images import SUFFIXES
from jobs.run.errors import MALFORMED, UserError

NAME = re.compile(
    r"task-(?P<task>\d{1,18})-(?:annotation-\d+-by-[^-]*-|(?=tag-))(?P<label>.+)-\d{1,9}\.png", re.DOTALL
)
"""`label`: includes the tag's name, which is `tag` in Label Studio's own templates."""
UPLOADED = re.compile(r"^[0-9a-f]{8}-")
"""Prefix that Label Studio adds to the name of an uploaded file."""

Drawn = dict[str, list[tuple[int, dict[str, Any]]]]
"""Image name -> its shapes, as in Item."""


def is_export(names: list[str]) -> bool:
    """Whether all pictures of a folder are named like such an export."""
    return bool(names) and all(NAME.fullmatch(PurePosixPath(name).name) for name in names)


def shapes(
    pictures: dict[str, Path], listed: list[tuple[Path, Any]], images: dict[str, Path], classes: Classes
) -> tuple[Drawn, list[Finding]]:
    """The shapes of each image that has any; findings. `listed`: the folder's JSON files and their content.

    Raises UserError where none of them says which images the tasks are.
    """
    image_of = {
        number: (image, written)
        for file, content in listed
        for number, image, written in tasks(file, content, images)
    }
    if not image_of:
        raise UserError(
            f"{next(iter(pictures.values())).parent}: masks from Label Studio are named after a task, not "
            "an image: put "
            "the project's JSON export (Export, JSON) beside them, and the images that it names into --images"
        )
    tags = sorted({"tag", *(one for _, content in listed for one in tags_of(content))}, key=len)[::-1]
    written_as = {re.sub(r"[/\\]", "-", name): name for name in classes.names}
    drawn: Drawn = {}
    meant: dict[str, str] = {}
    found: list[Finding] = []
    unknown: set[str] = set()
    for name, path in sorted(pictures.items(), key=lambda one: order(one[0])):
        match = NAME.fullmatch(PurePosixPath(name).name)
        assert match
        image, written = image_of.get(int(match["task"]), ("", ""))
        tag = next((f"{one}-" for one in tags if match["label"].startswith(f"{one}-")), "")
        called = match["label"].removeprefix(tag)
        label = label_of(written_as.get(called, called), classes, str(path), unknown, found)
        if label is None:
            continue
        if not image:
            text = f"no image of --images is task {match['task']}"
            found.append(warning("no image", str(path), text, "nothing trains on it"))
        elif meant.setdefault(image, written) != written:
            text = f"its task's image is {written}, another's {meant[image]}, and there is {image} alone"
            fix = "rename the images and what the JSON calls them, or remove one task's masks"
            found.append(error("image twice", str(path), text, fix))
        else:
            status = path.stat()
            shape = {"file": str(path), "stat": [status.st_size, status.st_mtime_ns]}
            drawn.setdefault(image, []).append((label, shape))
    return drawn, found


def tags_of(content: Any) -> Iterator[str]:
    """The names of the tags with labels in a JSON export: in JSON_MIN, each is a key of a task."""
    for task in content:
        with contextlib.suppress(*MALFORMED):
            for annotation in task.get("annotations") or []:
                yield from (str(one["from_name"]) for one in annotation["result"] if "from_name" in one)
            for key, regions in task.items():
                if isinstance(regions, list) and any("brushlabels" in one for one in regions):
                    yield str(key)


def order(name: str) -> tuple[Any, ...]:
    """Sort key for the order of drawing, as far as names tell: by task, annotation and number."""
    return tuple(int(one) if one.isdigit() else one for one in re.split(r"(\d+)", name))


def tasks(file: Path, content: Any, images: dict[str, Path]) -> Iterator[tuple[int, str, str]]:
    """(number, image name, its name in the export) of a JSON export's tasks whose image exists."""
    bare: dict[str, list[str]] = {}
    for name in images:
        bare.setdefault(PurePosixPath(name).name, []).append(name)
    try:
        for task in content:
            for written in [*(task.get("data") or task).values()]:
                name = name_of(written) if isinstance(written, str) else ""
                same = bare.get(name) or bare.get(UPLOADED.sub("", name)) or []
                if len(same) == 1:
                    yield int(task["id"]), same[0], written
                    break
    except MALFORMED as problem:
        raise UserError(
            f"{file} is not a JSON export from Label Studio ({type(problem).__name__}: {problem})"
        ) from None


def name_of(written: str) -> str:
    """The file name in a task's image reference; "" if it is not an image."""
    parts = urlsplit(written)
    local = parse_qs(parts.query).get("d", [""])[0]  # /data/local-files/?d=PATH
    name = PurePosixPath(local or unquote(parts.path)).name
    return name if PurePosixPath(name).suffix.lower() in SUFFIXES else ""
