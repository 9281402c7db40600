"""Is the dataset still what was made? In seconds by lists, names and sizes; deep, by every byte and pixel."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import UserError
from jobs.prepare import manifest, workers
from jobs.prepare.manifest import Entry
from jobs.prepare.progress import task

BATCH = 256
VOC = "VOC 2012 + SBD"


def quick(root: Path) -> list[str]:
    """What is wrong with the dataset at `root`, a line each: lists, names and sizes of all files."""
    try:
        found = manifest.read(root)
        if found is None:
            return [f"{root} has no {manifest.MANIFEST}: it was not prepared to its end"]
        entries = manifest.read_files(root, found)
    except UserError as error:
        return [str(error)]
    return check_sizes(root, entries) + check_lists(root, entries)


def check_sizes(root: Path, entries: list[Entry]) -> list[str]:
    problems = []
    for folder, expected in by_folder(entries).items():
        there: dict[str, int] = {}
        try:
            with os.scandir(root / folder) as files:
                there = {file.name: file.stat().st_size for file in files}
        except FileNotFoundError:
            problems.append(f"{root / folder} is missing")
            continue
        for name, size in expected.items():
            if name not in there:
                problems.append(f"{root / folder / name} is missing")
            elif there[name] != size:
                problems.append(f"{root / folder / name} has {there[name]:,} bytes, not {size:,}")
    return problems


def by_folder(entries: list[Entry]) -> dict[str, dict[str, int]]:
    folders: dict[str, dict[str, int]] = {}
    for entry in entries:
        folder, _, name = entry.path.rpartition("/")
        folders.setdefault(folder, {})[name] = entry.size
    return folders


def check_lists(root: Path, entries: list[Entry]) -> list[str]:
    """The lists to the byte: they are small, and a changed one trains on the wrong images."""
    problems = []
    for entry in entries:
        if entry.path.endswith(".txt"):
            try:
                content = (root / entry.path).read_bytes()
            except FileNotFoundError:
                continue  # check_sizes has said so
            if manifest.content_digest(content) != entry.digest:
                problems.append(f"{root / entry.path} was altered")
    return problems


def deep(root: Path, processes: int | None = None) -> list[str]:
    """As `quick`, and every byte of every file, every pixel of every mask, its size against its image's."""
    problems = quick(root)
    try:
        found = manifest.read(root)
        entries = manifest.read_files(root, found) if found else []
    except UserError:
        return problems  # quick has said so
    sizes: dict[str, tuple[int, int]] = {}
    damaged: list[str] = []
    voc = found is not None and found.dataset == VOC
    count = processes or (workers.cores() if len(entries) > 2000 else 1)
    with workers.start(count) as pool, task("reading every file", len(entries), "files") as advance:
        for batch in batches(entries):
            pool.submit(look, root, batch, voc)
            advance(len(batch))
        for some, wrong in pool.results():
            sizes.update(some)
            damaged += wrong
    for path, size in sizes.items():
        if path.endswith(".png"):
            image = f"{path.split('/')[0]}/JPEGImages/{path.rsplit('/', 1)[1][:-4]}.jpg"
            if image in sizes and sizes[image] != size:
                (width, height), (w, h) = size, sizes[image]
                damaged.append(f"{root / path} is {width}×{height}, its image {w}×{h}")
    # A file of the wrong size is named by both; once is enough.
    named = {problem.split(" ")[0] for problem in problems}
    return problems + [problem for problem in damaged if problem.split(" ")[0] not in named]


def batches(entries: list[Entry]) -> Iterator[list[Entry]]:
    for at in range(0, len(entries), BATCH):
        yield entries[at : at + BATCH]


def look(root: Path, batch: list[Entry], voc: bool) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """(image sizes by path, problems) of some files; runs in a worker. `voc`: only VOC's labels may occur."""
    from jobs.prepare.build import check_labels, decode_mask
    from jobs.prepare.png import BadImage, jpeg_size
    from jobs.prepare.sbd import BadMask

    sizes: dict[str, tuple[int, int]] = {}
    problems = []
    for entry in batch:
        path = root / entry.path
        try:
            content = path.read_bytes()
            if manifest.content_digest(content) != entry.digest:
                problems.append(f"{path} was altered or damaged: its content is not what was prepared")
            elif entry.path.endswith(".jpg"):
                sizes[entry.path] = jpeg_size(content)
            elif entry.path.endswith(".png") and not voc:
                read_png(content)
            elif entry.path.endswith(".png"):
                labels = decode_mask(content)
                check_labels(labels)
                sizes[entry.path] = (labels.shape[1], labels.shape[0])
        except FileNotFoundError:
            continue  # quick has said so
        except (BadImage, BadMask) as error:
            problems.append(f"{path} {error}")
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror}")
    return sizes, problems


def read_png(content: bytes) -> None:
    """Raises BadMask if a PNG of any kind cannot be decoded to its end."""
    from PIL import Image

    from jobs.prepare.sbd import BadMask

    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise BadMask(f"is damaged ({error})") from None
