"""Writes a dataset's files into its staging folder, so that an interrupted run can be continued."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

from jobs.catalog import manifest
from jobs.catalog.manifest import Entry, Manifest
from jobs.prepare.packed.writer import Writer, beside
from jobs.prepare.progress import say
from jobs.run import packed
from jobs.run.deflate import content_digest
from jobs.run.errors import UserError


def put(into: Path | Writer, path: str, content: bytes) -> Entry:
    """Writes `content` to `path` in a container, or below a folder unless exactly that is there already."""
    if isinstance(into, Writer):
        return into.put(path, content)
    target = os.path.join(into, path)
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        with open(target, "rb") as file:
            if file.read() == content:
                return Entry(path, len(content), content_digest(content))
        os.unlink(target)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        view = memoryview(content)
        while view:  # a nearly full disk takes a part, and fails only at the next write
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from None
    finally:
        os.close(fd)
    return Entry(path, len(content), content_digest(content))


def put_manifest(staging: Path, dataset: str, entries: Sequence[Entry], **more: Any) -> Manifest:
    """Writes a staged dataset's table of files, and its manifest, with `more` as further fields."""
    table = manifest.files_text(entries)
    put(staging, manifest.FILES, table)
    made = Manifest(
        dataset=dataset,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files=len(entries),
        bytes=sum(entry.size for entry in entries),
        files_digest=manifest.table_digest(table),
        **more,
    )
    put(staging, manifest.MANIFEST, manifest.to_json(made))
    return made


def check_space(staging: Path, size: int, files: int) -> None:
    """Raises UserError unless the file system has space for that; what is already staged is subtracted."""
    there = sum(len(names) for _, _, names in os.walk(staging))
    used = 0
    if there:
        used = sum(
            os.stat(os.path.join(at, name)).st_size for at, _, names in os.walk(staging) for name in names
        )
    system = os.statvfs(staging)
    free = system.f_bavail * system.f_frsize
    if free < size - used:
        raise UserError(
            f"{staging} has {free / 1e6:,.0f} MB free and needs {(size - used) / 1e6:,.0f} MB more: "
            "make room or choose another --data-root"
        )
    if system.f_files and system.f_favail < files - there:
        raise UserError(
            f"{staging} has {system.f_favail:,} files (inodes) free and needs {files - there:,} more: "
            "make room or choose another --data-root"
        )


def strangers(root: Path, expected: set[str]) -> Iterator[str]:
    """The paths of files, and of links to folders, below a folder that are not expected.
    Raises OSError for a folder that cannot be read."""
    for at, folders, names in os.walk(root, onerror=_stop):
        inside = "" if at == str(root) else f"{os.path.relpath(at, root)}/"
        yield from (inside + name for name in names if inside + name not in expected)
        for name in folders:
            if os.path.islink(os.path.join(at, name)):
                path = inside + name
                if not any(one.startswith(f"{path}/") for one in expected):
                    yield path


def _stop(error: OSError) -> NoReturn:
    raise error


def remove_strangers(staging: Path, expected: set[str]) -> None:
    """Removes what an interrupted run with other archives may have left."""
    for path in strangers(staging, expected):
        os.unlink(staging / path)


def refuse_immovable(root: Path) -> None:
    """Raises UserError if the dataset at `root` has a folder that this user cannot empty, such as a
    colleague's: the dataset as a whole could then not be replaced."""
    inner = (os.path.join(at, name) for at, folders, _ in os.walk(root) for name in folders)
    for folder in (str(root), *inner):
        status = os.lstat(folder)
        if stat.S_ISLNK(status.st_mode):
            continue
        foreign = os.geteuid() not in (0, status.st_uid)
        closed = not os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True)
        if closed or (foreign and status.st_mode & stat.S_ISVTX):
            raise UserError(
                f"{folder} is a folder that you may not change, so the dataset in {root} cannot be "
                "replaced: ask its owner to allow it (chmod), or to move it elsewhere"
            )


def keep_strangers(root: Path, staging: Path) -> None:
    """Links (or copies) what somebody has added to the dataset at `root`, such as VOC 2010 beside 2012, into
    the staged one that will replace it. Raises UserError if both have a file of the same path, and as
    `refuse_immovable` does."""
    refuse_immovable(root)
    found, made = manifest.read(root), manifest.read(staging)
    assert made is not None
    try:
        entries = manifest.read_files(root, found) if found else []
    except UserError:  # its table of files is gone: take the new one's instead
        entries = manifest.read_files(staging, made)
    own = {manifest.MANIFEST, manifest.FILES}
    if found and found.packed:
        own.add(packed.NAME)
        entries = beside(entries)
    own |= {entry.path for entry in entries}
    kept = 0
    for path in strangers(root, own):
        target = staging / path
        if os.path.lexists(target):
            raise UserError(f"{root / path} was put there by hand, but the dataset has a file of that name: "
                            "move it away, and start again")  # fmt: skip
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(root / path, target, follow_symlinks=False)
        except OSError:  # another file system behind a link, or one without links
            shutil.copy2(root / path, target, follow_symlinks=False)
        kept += 1
    if kept:
        say(f"{root} has {kept:,} file(s) that do not belong to the dataset: they stay as they are")
