"""Packs an existing dataset into one file, and back. Either way, one rename replaces all of it."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath

from jobs.catalog import manifest, own_images
from jobs.catalog.manifest import Entry, Manifest
from jobs.prepare.disk import sync
from jobs.prepare.lock import hold
from jobs.prepare.packed.writer import Writer, beside
from jobs.prepare.progress import say, task
from jobs.prepare.voc.build import check_space, put
from jobs.prepare.voc.pipeline import publish, put_back, say_waiting, tidy, work_folder
from jobs.prepare.voc.writing import refuse_immovable
from jobs.run import packed
from jobs.run.deflate import content_digest
from jobs.run.errors import UserError

WORK = ".prepare-pack"


def pack(data_root: Path, folder: str, wait: bool = True) -> Manifest:
    """Packs DATA/FOLDER, which prepare.py has made, unless it is packed. Raises UserError if it does not
    exist, or if one of its files has changed since."""
    return _turn(data_root, folder, wait, True)


def unpack(data_root: Path, folder: str, wait: bool = True) -> Manifest:
    """The inverse of `pack`: restores the same files, byte for byte."""
    return _turn(data_root, folder, wait, False)


def _turn(data_root: Path, folder: str, wait: bool, to_packed: bool) -> Manifest:
    root = data_root / folder
    if not own_images.aside(data_root, folder).exists():
        found = _there(root)
        if found.packed == to_packed:
            tidy(data_root, WORK)
            return found
    with hold(data_root, wait, say_waiting(data_root), folder=folder) as lock:
        assert lock is not None  # nothing is `done` by others
        put_back(data_root)
        work = data_root / WORK
        if os.path.lexists(work):
            shutil.rmtree(work_folder(work))
        found = _there(root)  # while waiting, another process may have done it
        if found.packed == to_packed:
            return found
        refuse_immovable(root)
        staging = work / folder
        staging.mkdir(parents=True)
        say(f"{'packing' if to_packed else 'unpacking'} {root}")
        made = (pack_tree if to_packed else unpack_tree)(root, staging)
        sync(staging)
        lock.check()
        publish(staging, root)
        shutil.rmtree(work)
    return made


def _there(root: Path) -> Manifest:
    found = manifest.read(root)
    if found is None:
        raise UserError(
            f"{root} has no {manifest.MANIFEST}, so it is not a prepared dataset that could be "
            "packed or unpacked"
        )
    return found


def pack_tree(root: Path, target: Path) -> Manifest:
    """Packs the dataset at `root` into the empty folder `target`, verifying each file."""
    found = _there(root)
    entries = manifest.read_files(root, found)
    check_space(target, found.bytes, 10)
    with Writer(target) as writer, task("packing", len(entries), "files") as advance:
        placed = []
        for entry in entries:
            content = _checked(root / entry.path, (root / _inside(entry)).read_bytes(), entry)
            placed.append(writer.put(entry.path, content))
            advance(1)
        writer.finish(placed)
    for entry in beside(entries):
        _write(target, entry.path, (root / entry.path).read_bytes())
    return _finish(root, target, replace(found, packed=True))


def unpack_tree(root: Path, target: Path) -> Manifest:
    """Unpacks the dataset at `root` into the empty folder `target`, verifying each file."""
    found = _there(root)
    entries = manifest.read_files(root, found)
    check_space(target, found.bytes, len(entries))
    container = packed.Container(root / packed.NAME)
    with task("unpacking", len(entries), "files") as advance:
        for entry in entries:
            try:
                content = container.read(_inside(entry))
            except KeyError:
                raise UserError(f"{container.path} is damaged: {entry.path} is missing in it; "
                                "prepare it again") from None  # fmt: skip
            _write(target, entry.path, _checked(container.path / entry.path, content, entry))
            advance(1)
    container.close()
    return _finish(root, target, replace(found, packed=False))


def _inside(entry: Entry) -> str:
    """The entry's path. Raises UserError if it leads outside: others may have made the table of files."""
    path = PurePosixPath(entry.path)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise UserError(f"the table of files names {entry.path!r}, outside the dataset: prepare it again")
    try:
        entry.path.encode()
    except UnicodeEncodeError:
        raise UserError(f"the name of {entry.path!r} is not UTF-8: such a dataset cannot be packed") from None
    return entry.path


def _checked(path: Path, content: bytes, entry: Entry) -> bytes:
    if content_digest(content) != entry.digest:
        raise UserError(
            f"{path} was altered or damaged since it was prepared: move the dataset away, and prepare it "
            "again"
        )
    return content


def _write(target: Path, path: str, content: bytes) -> None:
    os.makedirs((target / path).parent, exist_ok=True)
    put(target, path, content)


def _finish(root: Path, target: Path, made: Manifest) -> Manifest:
    put(target, manifest.FILES, (root / manifest.FILES).read_bytes())
    put(target, manifest.MANIFEST, manifest.to_json(made))
    return made
