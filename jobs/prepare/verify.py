"""Is the dataset unchanged? In seconds by lists, names and sizes; in depth by every byte and pixel."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jobs.catalog import manifest
from jobs.catalog.manifest import Entry
from jobs.prepare import workers
from jobs.prepare.packed.writer import beside, lists_of
from jobs.prepare.progress import task
from jobs.run import packed
from jobs.run.deflate import content_digest
from jobs.run.errors import UserError

BATCH = 256
VOC = "VOC 2012 + SBD"


class Finding(NamedTuple):
    """What is wrong with one file."""

    path: str
    text: str
    """The whole line, including the path."""


def quick(root: Path) -> list[str]:
    """The problems of the dataset at `root`, one line each, from the lists, names and sizes of all files."""
    return [finding.text for finding in look_quickly(root)[0]]


def look_quickly(root: Path) -> tuple[list[Finding], list[Entry], str]:
    """(findings, the file table, the dataset's name); the last two empty if the table cannot be read."""
    try:
        found = manifest.read(root)
        if found is None:
            text = f"{root} has no {manifest.MANIFEST}: it was not prepared to its end"
            return [Finding(str(root), text)], [], ""
        entries = manifest.read_files(root, found)
    except UserError as error:
        return [Finding(str(root), str(error))], [], ""
    if found.packed:
        problems = check_container(root, entries)
        # The others, which people open, are missing if it was packed before they were kept beside.
        lists = (root / entry.path for entry in lists_of(entries))
        problems += [finding(path, "is missing") for path in lists if not path.exists()]
        small = beside(entries)
    else:
        problems = check_sizes(root, entries)
        small = [entry for entry in entries if entry.path.endswith(".txt")]
    return problems + check_bytes(root, small), entries, found.dataset


def check_sizes(root: Path, entries: list[Entry]) -> list[Finding]:
    problems = []
    for folder, expected in by_folder(entries).items():
        there: dict[str, int] = {}
        try:
            with os.scandir(root / folder) as files:
                there = {file.name: file.stat().st_size for file in files}
        except FileNotFoundError:
            problems.append(finding(root / folder, "is missing"))
            continue
        for name, size in expected.items():
            path = root / folder / name
            if name not in there:
                problems.append(finding(path, "is missing"))
            elif there[name] != size:
                problems.append(finding(path, f"has {there[name]:,} bytes, not {size:,}"))
    return problems


def check_container(root: Path, entries: list[Entry]) -> list[Finding]:
    """Checks names, sizes and digests in the container's directory."""
    path = root / packed.NAME
    try:
        container = packed.Container(path)
    except FileNotFoundError:
        return [finding(path, "is missing")]
    except OSError as error:
        return [finding(path, f"cannot be read: {error.strerror}")]
    except UserError as error:
        return [Finding(str(path), str(error))]
    problems = []
    for entry in entries:
        place = container.files.get(entry.path)
        if place is None:
            problems.append(finding(path / entry.path, "is missing"))
        elif place.size != entry.size:
            problems.append(finding(path / entry.path, f"has {place.size:,} bytes, not {entry.size:,}"))
        elif f"{place.crc:08x}" != entry.digest:
            problems.append(finding(path / entry.path, "is not what was prepared"))
    container.close()
    return problems


def finding(path: Path, what: str) -> Finding:
    return Finding(str(path), f"{path} {what}")


def by_folder(entries: list[Entry]) -> dict[str, dict[str, int]]:
    folders: dict[str, dict[str, int]] = {}
    for entry in entries:
        folder, _, name = entry.path.rpartition("/")
        folders.setdefault(folder, {})[name] = entry.size
    return folders


def check_bytes(root: Path, entries: list[Entry]) -> list[Finding]:
    """Checks every byte of lists: they are small, and a changed one trains on the wrong images."""
    problems = []
    for entry in entries:
        try:
            content = (root / entry.path).read_bytes()
        except FileNotFoundError:
            continue  # already reported, or not required
        if content_digest(content) != entry.digest:
            problems.append(finding(root / entry.path, "was altered"))
    return problems


def deep(root: Path, processes: int | None = None) -> list[str]:
    """As `quick`, plus every byte of every file, every pixel of every mask, and mask against image sizes."""
    problems, entries, dataset = look_quickly(root)
    # If the container itself cannot be opened, there is nothing to check in it.
    container = root / packed.NAME if (root / packed.NAME).exists() else None
    if container and any(problem.path == str(container) for problem in problems):
        entries = []
    sizes: dict[str, tuple[int, int]] = {}
    damaged: list[Finding] = []
    count = processes or (workers.cores() if len(entries) > 2000 else 1)
    with workers.start(count) as pool, task("reading every file", len(entries), "files") as advance:
        for batch in batches(entries):
            pool.submit(look, container or root, batch, dataset == VOC)
            advance(len(batch))
        for some, wrong in pool.results():
            sizes.update(some)
            damaged += wrong
    for path, size in sizes.items():
        if path.endswith(".png"):
            image = f"{path.split('/')[0]}/JPEGImages/{path.rsplit('/', 1)[1][:-4]}.jpg"
            if image in sizes and sizes[image] != size:
                (width, height), (w, h) = size, sizes[image]
                damaged.append(finding((container or root) / path, f"is {width}×{height}, its image {w}×{h}"))
    # Both report a file of the wrong size; once is enough.
    named = {problem.path for problem in problems}
    return [problem.text for problem in problems + [one for one in damaged if one.path not in named]]


def batches(entries: list[Entry]) -> Iterator[list[Entry]]:
    for at in range(0, len(entries), BATCH):
        yield entries[at : at + BATCH]


def look(root: Path, batch: list[Entry], voc: bool) -> tuple[dict[str, tuple[int, int]], list[Finding]]:
    """(image sizes by path, findings) of some files; runs in a worker. `root`: the dataset's folder, or its
    container; `voc`: only VOC's labels may occur."""
    from jobs.prepare.voc.masks import check_labels, decode_mask
    from jobs.prepare.voc.sbd import BadMask
    from jobs.run.png import BadImage, jpeg_size

    sizes: dict[str, tuple[int, int]] = {}
    problems = []
    container = packed.opened(root) if root.name == packed.NAME else None
    for entry in batch:
        path = root / entry.path
        try:
            content = container.read(entry.path) if container else path.read_bytes()
            if content_digest(content) != entry.digest:
                problems.append(finding(path, "was altered or damaged since it was prepared"))
            elif entry.path.endswith(".jpg"):
                sizes[entry.path] = jpeg_size(content)
            elif entry.path.endswith(".png") and not voc:
                read_png(content)
            elif entry.path.endswith(".png"):
                labels = decode_mask(content)
                check_labels(labels)
                sizes[entry.path] = (labels.shape[1], labels.shape[0])
        except (FileNotFoundError, KeyError):
            continue  # reported by `quick`
        except UserError as error:
            problems.append(Finding(str(path), str(error)))
        except (BadImage, BadMask) as error:
            problems.append(finding(path, str(error)))
        except OSError as error:
            problems.append(finding(path, f"cannot be read: {error.strerror}"))
    return sizes, problems


FORMATS = ("PNG", "BMP", "JPEG", "TIFF")
"""Formats that converters write into .png files; Pillow would start programs for others (EPS)."""


def read_png(content: bytes) -> None:
    """Raises BadMask if the image cannot be decoded to its end."""
    from PIL import Image

    from jobs.prepare.voc.sbd import BadMask

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.load()
    except Exception as error:  # a decoder raises anything, down to struct.error
        raise BadMask(f"is damaged ({error})") from None
