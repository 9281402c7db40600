"""Datasets other than VOC: `--dataset NAME` runs the installed mmsegmentation's own converter.

The same procedure as for VOC: lock, checksums, a staging folder, counts, manifest, one rename. After an
interruption, it starts anew without downloading or hashing again; converters cannot be resumed.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
import zipfile
from pathlib import Path

from jobs.catalog.manifest import Entry, Manifest
from jobs.catalog.recipes import RECIPES, Recipe, check_name, converters, split_arguments
from jobs.catalog.sources import Source
from jobs.prepare import converter_process as guarded
from jobs.prepare import workers
from jobs.prepare.archives import DamagedArchive, unpack_tar
from jobs.prepare.disk import sync
from jobs.prepare.local_archives import Checked, check_archive, listed_digest
from jobs.prepare.lock import hold
from jobs.prepare.progress import say, task
from jobs.prepare.voc import pipeline as prepare
from jobs.prepare.voc.writing import check_space, put_manifest
from jobs.run.deflate import content_digest
from jobs.run.errors import UserError
from jobs.slurm import calls as slurm

END_OF_JOB = 600.0
"""Seconds before the time limit within which a signal means that limit."""

DYING = 10.0
"""Seconds that a killed converter may take to end."""


OF_ITS_NAMES = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
"""Errors from a file system for an archive whose names conflict or are not valid file names."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What the command line asked for."""

    name: str
    recipe: Recipe
    data_root: Path
    archives: Path | None
    checksum: bool
    partial: bool
    wait: bool
    processes: int


def order_of(args: argparse.Namespace) -> Order:
    """The order on a command line. Raises UserError for a dataset that is not known."""
    name = check_name(args.dataset, args.converter_args is not None)
    recipe = RECIPES.get(name) or Recipe(name, ())
    if args.converter_args is not None:
        recipe = dataclasses.replace(recipe, arguments=split_arguments(args.converter_args))
    return Order(
        name,
        recipe,
        args.data_root,
        args.archives,
        not args.no_checksum,
        args.partial,
        not args.no_wait,
        args.processes or workers.cores(),
    )


def prepare_other(order: Order) -> prepare.Result:
    """Makes DATA/FOLDER unless it exists and is sound. Raises UserError for whatever the user can fix."""
    begun = time.monotonic()
    folder = order.recipe.folder
    work = order.data_root / f"{prepare.WORK}-{order.name}"
    look = prepare.watcher(order.data_root, folder)
    if found := look():
        prepare.tidy(order.data_root, work.name)
        return prepare.Result(found, time.monotonic() - begun, True)
    order.data_root.mkdir(parents=True, exist_ok=True)
    with hold(
        order.data_root,
        order.wait,
        prepare.say_waiting(order.data_root),
        done=lambda: look() is not None,
        folder=folder,
    ) as lock:
        if lock:
            prepare.put_back(order.data_root)
        found = prepare.present(order.data_root, folder)
        if found or lock is None:
            assert found is not None
            return prepare.Result(found, time.monotonic() - begun, True)
        prepare.refuse_foreign(order.data_root, folder)
        prepare.work_folder(work)
        for left in work.glob("start-*"):
            remove(left)
        # A new folder for each start: what a killed start's converter may still write is ignored.
        staging = work / f"start-{uuid.uuid4().hex[:8]}" / folder
        staging.mkdir(parents=True)
        made = make(order, work, staging)
        sync(staging)
        lock.check()
        prepare.publish(staging, order.data_root / folder)
        shutil.rmtree(work)
    return prepare.Result(made, time.monotonic() - begun, False)


def remove(folder: Path) -> None:
    """Removes a folder into which a converter that is being killed may still be writing."""
    deadline = time.monotonic() + DYING
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError as error:
            # Meanwhile, another file was added or removed.
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def make(order: Order, work: Path, staging: Path) -> Manifest:
    recipe = order.recipe
    converter = None
    if recipe.arguments is not None:
        converter = find_converter(order.name, recipe)
    paths = find_archives(order, work)
    checked = {name: check(source, path, order, work) for name, source, path in paths}
    check_space(staging, sum(unpacked_size(path) for _, _, path in paths), 0)
    if recipe.unpack:
        for _, _, path in paths:
            unpack(path, staging)
    if converter:
        convert(converter, order, {name: path for name, _, path in paths}, staging)
    counts = count(recipe, staging, order.partial)
    return put_manifest(
        staging,
        order.name,
        entries_of(staging),
        lists={pattern: {"count": number} for pattern, number in counts.items()},
        archives={name: one.record for name, one in checked.items()},
    )


def find_converter(name: str, recipe: Recipe) -> Path:
    found = converters()
    if name not in found:
        what = f"it has {', '.join(found)}" if found else "no converters came with it"
        raise UserError(f"the installed mmsegmentation has no converter {name}.py: {what}")
    if recipe.needs and importlib.util.find_spec(recipe.needs) is None:
        raise UserError(
            f"the converter of {name} needs the package {recipe.needs}: pip install {recipe.needs}"
        )
    return found[name]


def find_archives(order: Order, work: Path) -> list[tuple[str, Source | None, Path]]:
    """(name, source if known, path) of every archive; downloads those not given, if possible."""
    result: list[tuple[str, Source | None, Path]] = []
    folder = order.archives or order.data_root
    if order.archives is not None and not folder.is_dir():
        raise UserError(f"--archives {folder} is not a folder")
    missing = []
    for wanted in order.recipe.archives:
        source = wanted if isinstance(wanted, Source) else None
        name = source.name if source else str(wanted)
        path = folder / name
        if not path.is_file():
            if source and order.archives is None:
                from jobs.prepare.download import fetch

                path = fetch(source, work, unpacked=order.recipe.unpack)
            else:
                missing.append(name)
        result.append((name, source, path))
    if missing:
        raise UserError(
            f"{folder} lacks {' and '.join(missing)}: download {'it' if len(missing) == 1 else 'them'} "
            "by hand (it is not available without a login) and give the folder with --archives"
        )
    if order.archives is None and not order.recipe.archives:
        raise UserError(f"{order.name} needs --archives DIR, the folder with its archives")
    return result


def check(source: Source | None, path: Path, order: Order, work: Path) -> Checked:
    """Checks an archive by the published digest or a checksums file; else a zip by the CRC of each member."""
    crc = source is None and zipfile.is_zipfile(path) and listed_digest(path) is None
    if crc and order.checksum:
        if not order.recipe.unpack:  # unpacking would check it as well
            check_zip(path)
        say(f"{path.name}: no checksum is published or listed; the CRC of each member is checked")
        return Checked(path.stat().st_size, "crc", "", False)
    known = source or Source(path.name, -1, {"sha256": ""}, ())
    return check_archive(known, path, path.parent, order.checksum, work)


def check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as packed:
            bad = packed.testzip()
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault
        raise DamagedArchive(f"{path} is damaged ({error}): download it again") from None
    if bad:
        raise DamagedArchive(f"{path} is damaged at its member {bad}: download it again")


def unpacked_size(archive: Path) -> int:
    """Bytes of an archive's content; for a tar, even if compressed, its own size. Raises DamagedArchive."""
    if not zipfile.is_zipfile(archive):
        return archive.stat().st_size
    try:
        with zipfile.ZipFile(archive) as packed:
            return sum(info.file_size for info in packed.infolist())
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedArchive(f"{archive} is damaged ({error}): download it again") from None


def unpack(archive: Path, target: Path) -> None:
    """Extracts every plain file, none outside `target`, verifying each checksum. Raises DamagedArchive."""
    try:
        if zipfile.is_zipfile(archive):
            with (
                zipfile.ZipFile(archive) as packed,
                task(f"unpack {archive.name}", len(packed.infolist())) as advance,
            ):
                for info in packed.infolist():
                    name = info.filename
                    if name.startswith("/") or ".." in name.split("/"):
                        raise DamagedArchive(f"{archive}: member {name!r} would leave the folder")
                    packed.extract(info, target)
                    advance(1)
        else:
            unpack_tar(archive, target)
    except DamagedArchive:
        raise
    except OSError as error:
        # A file where another member needs a folder, or an invalid file name; but a full disk is not the
        # archive's fault.
        if error.errno not in (None, *OF_ITS_NAMES):
            raise
        raise DamagedArchive(f"{archive} is damaged ({error}): download it again") from None
    except Exception as error:  # zipfile raises anything, from struct.error to NotImplementedError
        raise DamagedArchive(f"{archive} is damaged ({error}): download it again") from None


def convert(converter: Path, order: Order, archives: dict[str, Path], staging: Path) -> None:
    """Runs mmsegmentation's converter in its own process group, which ends with this process however that
    ends; its output is passed through."""
    assert order.recipe.arguments is not None
    folder = (order.archives or order.data_root).resolve()
    if archives:
        # Some take any archive in the folder: show them only their own.
        folder = staging.parent.resolve() / "archives"
        for name, path in archives.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path.resolve())
    values = {
        "archives": str(folder),
        "out": str(staging.resolve()),
        "processes": str(order.processes),
    }
    arguments = []
    for argument in order.recipe.arguments:
        for key, value in values.items():
            argument = argument.replace(f"{{{key}}}", value)
        arguments.append(argument)
    scratch = staging.parent / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch.resolve())}
    say(f"running {converter.name} {' '.join(arguments)}")
    errors = scratch / "errors.txt"
    job = slurm.span()
    with errors.open("w+") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-I", guarded.__file__, str(os.getpid()), str(converter), *arguments],
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        began = time.time()
        try:
            code = process.wait()
        except BaseException:
            # Preempted: end the converter and its pool, too.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if limit_is_too_short(began, time.time(), job):
                raise UserError(
                    f"{converter.name} cannot be interrupted, and this job's time limit is too short for "
                    "it: give it more time (--time)"
                ) from None
            raise
        stderr.seek(0)
        said = stderr.read().strip().splitlines()
    if code:
        last = said[-1] if said else f"it ended with code {code}"
        raise UserError(
            f"{converter.name} failed: {last[:300]} "
            f"(are the archives in {order.archives or order.data_root} complete?)"
        )
    shutil.rmtree(scratch)


def limit_is_too_short(began: float, now: float, job: tuple[float, float] | None) -> bool:
    """Whether a converter that started at `began` and is told to exit `now` has had most of its job's time
    (from, to), which is nearly over: another start of the job would not do better."""
    if job is None:
        return False
    start, end = job
    return now - began > 0.5 * (end - start) and end - now < END_OF_JOB


def count(recipe: Recipe, staging: Path, partial: bool) -> dict[str, int]:
    """File counts by pattern. Raises UserError if not the release's, or if images and masks do not match."""
    counts = {pattern: sum(1 for _ in staging.glob(pattern)) for pattern in recipe.counts}
    for pattern, expected in recipe.counts.items():
        if counts[pattern] != expected and not (partial and counts[pattern]):
            raise UserError(
                f"{recipe.folder}/{pattern}: {counts[pattern]:,} files, but the release has {expected:,}: "
                "an archive is incomplete (--partial accepts what there is)"
            )
    for images, masks in recipe.pairs:
        for split in sorted(path for path in staging.glob(masks) if path.is_dir()):
            twin = staging / Path(images).parent / split.name
            number, of_masks = files_in(twin), files_in(split)
            counts[f"{split.relative_to(staging)}"] = of_masks
            # Some have two annotators: a whole number of masks per image, at least one.
            if not number or not of_masks or of_masks % number:
                raise UserError(
                    f"{recipe.folder}: {number:,} images in {twin.relative_to(staging)}, "
                    f"{of_masks:,} masks in {split.relative_to(staging)}"
                )
    if not any(counts.values()) and not any(staging.rglob("*.png")):
        raise UserError(f"the converter made no masks in {recipe.folder}: are these the right archives?")
    return counts


def files_in(folder: Path) -> int:
    return sum(1 for path in folder.iterdir() if path.is_file()) if folder.is_dir() else 0


def entries_of(staging: Path) -> list[Entry]:
    paths = sorted(path for path in staging.rglob("*") if path.is_file())
    entries = []
    with task("digests", len(paths)) as advance:
        for path in paths:
            content = path.read_bytes()
            entries.append(Entry(path.relative_to(staging).as_posix(), len(content), content_digest(content)))
            advance(1)
    return entries
