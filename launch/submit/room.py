"""Checks, before anything is queued, that what a preparation writes fits the user's file quota."""

from __future__ import annotations

import sys
from pathlib import Path

from jobs.catalog import manifest
from jobs.catalog.recipes import PACKED_FILES, VOC, files_of
from jobs.run import quotas
from jobs.run.errors import UserError


def warn_of_files(root: Path, dataset: str, pack: bool, unpack: bool) -> None:
    """Warns, with what to do, if the dataset at `root` will have more files than its file system allows; not
    if they are there already, or if no limit is known."""
    try:
        there = manifest.read(root)
    except UserError:  # damaged: the job prepares it again
        there = None
    if there is not None and not unpack:
        return
    # Converters write plain files first, even if these are packed afterwards.
    as_one = pack and dataset.lower() in VOC
    most = there.files if there else PACKED_FILES if as_one else files_of(dataset)
    place = next(path for path in (root, *root.parents) if path.exists())
    left = quotas.left(place).files
    if left is None or most <= left:
        return
    way = "make room, or another --data-root"
    if unpack:
        way = "leave it packed: trainings read it as it is"
    elif not pack and dataset.lower() in VOC:
        way = f"--pack makes it at most {PACKED_FILES}"
    elif not pack:
        way += "; packed (--pack) it is few files only when it has been made elsewhere"
    print(
        f"warning: {root} will be about {most:,} files, but {place} has room for only {left:,} "
        f"more of yours: {way}",
        file=sys.stderr,
    )
