"""Options for inference on large images, and on more images than one process can handle."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from jobs.catalog.listing import ENDINGS, walk
from jobs.run import windows
from jobs.run.directory import Run
from jobs.run.errors import UserError
from launch.submit import interpreters, programs
from launch.submit.profiles import Resolved
from launch.submit.ranges import whole


def add(to: argparse.ArgumentParser) -> None:
    size = whole("--tile", windows.SMALLEST, windows.LARGEST)
    to.add_argument(
        "--tile",
        type=size,
        metavar="N",
        help="segment anything larger in tiles of N pixels (default: as the config says)",
    )
    to.add_argument(
        "--overlap",
        type=whole("--overlap", 0, windows.LARGEST),
        metavar="N",
        help="pixels that two tiles have in common, where they are blended (default: a quarter of a tile)",
    )
    to.add_argument(
        "--part", metavar="I/N", help="every N-th image, from the I-th on: N jobs share a folder and an --out"
    )


def check(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that do not fit."""
    windows.check_tile(arguments.tile, arguments.overlap)
    if arguments.part is not None:
        windows.share_of(arguments.part)
        if not arguments.out:
            raise UserError(
                "--part needs --out: jobs that share the images must also share the folder of the masks"
            )


def check_job(arguments: argparse.Namespace, run: Run, resolved: Resolved, images: list[str]) -> None:
    """Raises UserError if the run's code is too old, or if the library for windowed reading is missing."""
    if as_given(arguments) or resolved.settings.gpus > 1 or resolved.nodes[1] > 1:
        programs.require(run, "jobs/infer/large.py", "--tile, --part and several ranks")
    why = windows.lacking() if interpreters.is_this(resolved) else ""
    if why and arguments.tile is not None:
        raise UserError(f"--tile: {why}")
    for path in map(Path, images) if why else ():
        if path.is_file() and pixels(path) > windows.MOST_PIXELS:
            raise UserError(
                f"{path} has {pixels(path):,} pixels; at most {windows.MOST_PIXELS:,} are read whole: {why}"
            )


def check_folder(folder: Path) -> None:
    """Raises UserError if there is no image below a folder; the job looks more closely."""
    below = (name for _, names in walk(folder, lambda _: False) for name in names)
    if not any(os.path.splitext(name)[1].lower() in ENDINGS for name in below):
        raise UserError(f"no images at {folder}: give files, folders of images, or globs")


def pixels(path: Path) -> int:
    """Width × height, from the header; 0 if Pillow cannot read it, which the job will report."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # nothing is decoded
    try:
        with Image.open(path, formats=("TIFF", "PNG", "JPEG")) as file:
            return file.width * file.height
    except Exception:
        return 0


def as_given(arguments: argparse.Namespace) -> list[str]:
    """These options as arguments of the job."""
    found = {name: getattr(arguments, name) for name in ("tile", "overlap", "part")}
    return [f"--{name}={value}" for name, value in found.items() if value is not None]
