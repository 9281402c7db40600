"""VOC 2012 + SBD, from archives anywhere to a dataset in the data root, without intermediate states.

DATA/.prepare.lock     who prepares it
DATA/.prepare/         downloads and the staging folder: a later start goes on with them
DATA/.prepare.old/     holds the dataset that was there, between the rename that moves it away and the next
DATA/VOCdevkit/        appears whole, by one rename, manifest included
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.catalog import manifest, sources
from jobs.catalog import own_images as own_options
from jobs.catalog import owner as owners
from jobs.catalog.manifest import Manifest
from jobs.catalog.owner import Owner
from jobs.catalog.recipes import VOC_FOLDER as FOLDER
from jobs.catalog.recipes import dataset_of
from jobs.catalog.sources import Source
from jobs.prepare import lock as locks
from jobs.prepare import verify, workers
from jobs.prepare.disk import sync, writing_behind
from jobs.prepare.local_archives import checking, find_local
from jobs.prepare.lock import Lock, hold
from jobs.prepare.packed.writer import Writer
from jobs.prepare.progress import say
from jobs.prepare.voc import build
from jobs.prepare.voc import lists as voc
from jobs.prepare.voc.writing import keep_strangers, put_manifest
from jobs.run import packed, place
from jobs.run.errors import UserError

WORK = ".prepare"
PARALLEL_FROM = 32 << 20
"""Archive bytes from which starting worker processes pays."""


@dataclass(frozen=True)
class Result:
    manifest: Manifest
    seconds: float
    done_before: bool
    told: dict[str, Any] = field(default_factory=dict)
    """Further fields of the event `prepared`."""


def prepare(
    data_root: Path,
    archives: Path | None = None,
    checksum: bool = True,
    wait: bool = True,
    processes: int | None = None,
    pack: bool = False,
) -> Result:
    """Makes DATA/VOCdevkit, unless it exists and is sound. Idempotent; may be killed at any moment.

    `archives`: a folder with the two archives; without it they are downloaded. `processes`: workers, by
    default all cores of the job. `pack`: makes it as one file, if it
    makes it. Raises UserError for whatever the user can fix.
    """
    begun = time.monotonic()
    look = watcher(data_root)
    if found := look():
        tidy(data_root, WORK)
        return Result(found, time.monotonic() - begun, True)
    data_root.mkdir(parents=True, exist_ok=True)
    with hold(
        data_root, wait, say_waiting(data_root), done=lambda: look() is not None, folder=FOLDER
    ) as lock:
        if lock:
            put_back(data_root)
        # While waiting, or between the first look and the lock, another process may have finished it.
        found = present(data_root)
        if found or lock is None:
            assert found is not None
            return Result(found, time.monotonic() - begun, True)
        refuse_foreign(data_root)
        made = make(data_root, archives, checksum, processes, lock, pack)
    return Result(made, time.monotonic() - begun, False)


def say_waiting(data_root: Path) -> Callable[[Owner], None]:
    return lambda owner: say(f"{data_root} is being prepared by {owner}; waiting for it")


def present(data_root: Path, folder: str = FOLDER) -> Manifest | None:
    """The dataset's manifest if it exists and passes the quick check; else prints what is wrong."""
    root = data_root / folder
    found = manifest.read(root)
    if found is None:
        return None
    problems = verify.quick(root)
    if not problems:
        return found
    say(f"{root} is damaged and will be prepared again: {problems[0]}")
    return None


def watcher(data_root: Path, folder: str = FOLDER) -> Callable[[], Manifest | None]:
    """`present` for polling: silent, and does not check again what it has found damaged."""
    root = data_root / folder
    damaged: tuple[int, int] | None = None

    def look() -> Manifest | None:
        nonlocal damaged
        try:
            status = (root / manifest.MANIFEST).stat()
        except OSError:
            return None
        this = (status.st_ino, status.st_mtime_ns)
        if this == damaged:
            return None
        found = manifest.read(root)
        if found and not verify.quick(root):
            return found
        damaged = this
        return None

    return look


def tidy(data_root: Path, work: str) -> None:
    """Removes the leftovers of a start that was killed right after publishing the dataset."""
    if not (data_root / work).exists():
        return
    # If another process holds the lock, or it cannot be written, it is not ours to remove.
    with contextlib.suppress(UserError, OSError), hold(data_root, wait=False):
        put_back(data_root)
        shutil.rmtree(data_root / work)


def wait_only(data_root: Path, folder: str, preparer: int) -> Manifest:
    """Makes nothing: returns once others have made the dataset and ended (they may have more to do there).

    `preparer`: id of a process on this machine that makes it, or is about to; 0 for none. Raises UserError if
    neither that process nor an owner of the data root's lock is left, and there is no dataset.
    """
    look = watcher(data_root, folder)
    started = place.process_start(preparer) if preparer else None
    owner: Owner | None = None
    beat, since = 0.0, time.monotonic()
    announced = False
    while True:
        # Check whether they are alive before checking their work, so that the end of it is not missed.
        lives = started is not None and place.process_start(preparer) == started
        held = owners.read(data_root)
        if held and held[0].folder in ("", folder) and not owners.is_dead(held[0]):
            if held != (owner, beat):
                (owner, beat), since = held, time.monotonic()
            lives = lives or time.monotonic() - since < locks.STALE
        # Between two holds of the lock, a process on this machine is still seen to be alive.
        lives = lives or (held is None and owner is not None and owners.is_alive(owner))
        found = look()
        if not lives and found:
            return found
        if not lives:
            dataset = dataset_of(folder)
            raise UserError(
                f"the preparation of {data_root / folder} that was waited for has ended without finishing: "
                f"python launch/prepare.py --data-root {data_root} --dataset {dataset} makes it"
            )
        if not announced:
            say(f"{data_root / folder} is being prepared; waiting for it")
            announced = True
        # The owner may be on another node: there is no event to wait for, only files to poll.
        time.sleep(locks.POLL)


def refuse_foreign(data_root: Path, folder: str = FOLDER) -> None:
    """Raises UserError if the place is taken by something that prepare did not make."""
    root = data_root / folder
    if root.is_symlink() and not root.exists():
        raise UserError(
            f"{root} is a link to {os.readlink(root)}, which does not exist: is a disk not mounted?"
        )
    if root.exists() and manifest.read(root) is None:
        raise UserError(
            f"{root} was not made by prepare (it has no {manifest.MANIFEST}): move it away, "
            "or choose another --data-root"
        )


def work_folder(work: Path) -> Path:
    """Makes the folder in which a dataset is built. Raises UserError if it could not be renamed from there
    into its place, before the work rather than after it."""
    work.mkdir(exist_ok=True)
    if work.is_symlink() or work.stat().st_dev != work.parent.stat().st_dev:
        what = "a link" if work.is_symlink() else "on another file system"
        raise UserError(
            f"{work} is {what}, and what is made there is moved to {work.parent} by one rename: remove it, "
            "or choose a --data-root with more room"
        )
    return work


def make(
    data_root: Path,
    archives: Path | None,
    checksum: bool,
    processes: int | None,
    lock: Lock,
    pack: bool,
) -> Manifest:
    work = work_folder(data_root / WORK)
    both = (sources.VOC, sources.SBD)
    paths = obtain(data_root, both, work) if archives is None else find_local(archives, both)
    staging = work / FOLDER
    if staging.exists() and (pack or (staging / packed.NAME).exists()):
        shutil.rmtree(staging)  # a container is not continued, nor is a tree as a container
    staging.mkdir(exist_ok=True)
    count = processes or workers.cores()
    if processes is None and sum(path.stat().st_size for path in paths.values()) < PARALLEL_FROM:
        count = 1
    say(f"preparing {data_root / FOLDER} with {count} process{'es' if count > 1 else ''}")
    # The checksums are computed during the conversion: nothing is published before they are verified.
    with (
        checking(both, paths, checksum, work) as checks,
        writing_behind(staging),
        Writer(staging) if pack else contextlib.nullcontext() as container,
        workers.start(count) as pool,
    ):
        splits, entries = build.build(
            paths[sources.VOC.name], paths[sources.SBD.name], staging, pool, checks.look, container
        )
        checked = checks.results()
    if any(c.real for c in checked.values()):
        voc.check_real(splits)

    made = put_manifest(
        staging,
        verify.VOC,
        entries,
        lists={name: {"count": len(ids), "md5": voc.md5(ids)} for name, ids in splits.by_name().items()},
        archives={name: one.record for name, one in checked.items()},
        packed=pack,
    )
    sync(staging)
    lock.check()
    publish(staging, data_root / FOLDER)
    shutil.rmtree(work)
    return made


def obtain(data_root: Path, wanted: tuple[Source, ...], work: Path) -> dict[str, Path]:
    """The archives: those that the user has put into the data root; the others are downloaded."""
    from jobs.prepare.download import fetch  # not needed on a node without network

    paths = {}
    room = sources.DATASET_BYTES + sum(source.size for source in wanted)
    for source in wanted:
        room -= source.size
        placed = data_root / source.name
        paths[source.name] = placed if placed.is_file() else fetch(source, work, room=room)
    return paths


def publish(staging: Path, target: Path) -> None:
    """Publishes by one rename. An earlier dataset, damaged or in the other form, is moved aside first, then
    to where the staged one was, to be removed there. The caller holds the lock and has called `put_back`."""
    aside = own_options.aside(target.parent, target.name)
    if not target.exists():
        os.rename(staging, target)
        return
    keep_strangers(target, staging)
    aside.parent.mkdir(exist_ok=True)
    os.rename(target, aside)
    try:
        os.rename(staging, target)
    except OSError:
        with contextlib.suppress(OSError):  # if it fails, the next start moves it back
            os.rename(aside, target)
        raise
    os.rename(aside, staging)
    aside.parent.rmdir()


def put_back(data_root: Path) -> None:
    """Moves a dataset back that was moved aside by a start that was then killed: it may contain the user's
    only copy of some files. Only the holder of the lock may call it."""
    aside = own_options.aside(data_root)
    if not aside.exists():
        return
    for old in sorted(aside.iterdir()):
        if not os.path.lexists(data_root / old.name):
            say(f"{data_root / old.name} is put back: the process that was about to replace it was killed")
            os.rename(old, data_root / old.name)
    shutil.rmtree(aside)  # the new one has everything that was to be kept
