"""One's own dataset: from the user's folders, which are not changed, to DATA/NAME and a config.

The same procedure as for others: lock, staging, manifest with digests, one rename. The results of checks are
kept, so an interrupted start can be continued.

DATA/NAME/img_dir/{train,val}   the images: hard links or copies; converted where training cannot read them
DATA/NAME/ann_dir/{train,val}   the masks: PNG of 8 bits, the classes' numbers, 255 does not count
DATA/NAME/splits/*.txt          names, as BaseSegDataset reads them
DATA/NAME/dataset.json          classes, bands, mean and deviation, frequencies, weights
DATA/NAME/contact.html          to look at
DATA/NAME/findings.tsv          what the checks found; the manifest has a line of each kind
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from jobs.catalog import classes, manifest
from jobs.catalog import own_images as own_options
from jobs.catalog.classes import Classes
from jobs.catalog.listing import walk
from jobs.catalog.manifest import Manifest
from jobs.prepare.disk import sync
from jobs.prepare.lock import Lock, hold
from jobs.prepare.own import build, config_file, findings, judge, sheet, sources, splits
from jobs.prepare.own.config_file import Description
from jobs.prepare.own.findings import Finding
from jobs.prepare.own.judge import Bands, Pair
from jobs.prepare.own.scan import How, scan
from jobs.prepare.progress import say
from jobs.prepare.voc import pipeline as prepare
from jobs.prepare.voc.writing import check_space, put, put_manifest, remove_strangers
from jobs.run import packed
from jobs.run.directory import write_atomically
from jobs.run.errors import MALFORMED, UserError

ROWS = "rows.kept"
"""The file with what was read from each file, beside the staging folder, which has the dataset's name."""


def prepare_own(args: argparse.Namespace) -> prepare.Result:
    """Makes DATA/NAME, unless it exists, sound and from the same input; then the config, unless it exists.

    Raises UserError for whatever the user can fix, including errors in the data.
    """
    begun = time.monotonic()
    own_options.check(args)
    name, data_root = args.dataset, Path(args.data_root)
    for given in (Path(args.images), *(Path(path) for path in args.masks)):
        if given.resolve() in (data_root.resolve(), *data_root.resolve().parents):
            raise UserError(
                f"--data-root {data_root} lies in {given}: the next start would mistake what is made there "
                "for your images and masks, so choose another"
            )
    known = classes.read(Path(args.classes))
    request = request_of(args)
    data_root.mkdir(parents=True, exist_ok=True)
    with hold(data_root, not args.no_wait, prepare.say_waiting(data_root), folder=name) as lock:
        assert lock is not None  # without `done`; whether another process made the same is checked below
        prepare.put_back(data_root)
        made = prepare.present(data_root, name)
        before = made is not None
        if made is None:
            prepare.refuse_foreign(data_root, name)
            made = make(args, known, request, lock)
        else:
            refuse_other(data_root / name, request)
            # From a start that was killed after making this.
            shutil.rmtree(work_of(args), ignore_errors=True)
    told = told_of(data_root / name)
    if args.write_config and args.base:
        told |= write_config(args, data_root / name)
    return prepare.Result(made, time.monotonic() - begun, before, told)


def told_of(root: Path) -> dict[str, Any]:
    """The fields of the event `prepared` about the checks."""
    found, sheet_file = root / own_options.FINDINGS, root / own_options.SHEET
    if not found.is_file():  # packed before it was left beside the container
        return {}
    warnings = len(found.read_bytes().splitlines()) - 1
    return {"warnings": warnings, "findings": str(found), "sheet": str(sheet_file)}


def request_of(args: argparse.Namespace) -> str:
    """A digest of the dataset's input: classes, options, the files' names, sizes and times."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("classes", "train_list", "val_list"):
        if path := getattr(args, name):
            digest.update(f"{name}\0".encode() + Path(path).read_bytes())
    said = [args.images, args.masks, args.mask_kind or "auto", args.mask_suffix or "", args.split or ""]
    said += [args.seed or "0", args.group_by or "", bool(args.ignore_exif)]
    digest.update(msgspec.json.encode(said))
    for folder in dict.fromkeys([args.images, *args.masks]):
        for path in files_of(Path(folder)):
            status = path.stat() if path.exists() else path.lstat()  # a broken link is reported later
            stated = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0"
            digest.update(stated.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def files_of(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return sorted(Path(at, name) for at, names in walk(place) for name in names)


def refuse_other(root: Path, request: str) -> None:
    """Raises UserError if the existing dataset was made from other files or with other options."""
    if description(root).request != request:
        raise UserError(
            f"{root} was made from other files, classes or options: move it away, or give this one another "
            "name"
        )


def description(root: Path) -> Description:
    try:
        try:
            content = (root / own_options.DESCRIPTION).read_bytes()
        except FileNotFoundError:  # packed before it was left beside the container
            content = packed.opened(root / packed.NAME).read(own_options.DESCRIPTION)
        return msgspec.json.decode(content, type=Description)
    except (FileNotFoundError, KeyError):
        raise UserError(f"{root} was not made from your own images: choose another --dataset name") from None
    except (msgspec.MsgspecError, *MALFORMED, OSError) as error:
        raise UserError(
            f"{root / own_options.DESCRIPTION} cannot be read ({error}): prepare it again"
        ) from None


class Checked(NamedTuple):
    """What was read, and found to have no errors."""

    pairs: list[Pair]
    how: How
    table: dict[int, int]
    bands: Bands
    found: list[Finding]


def check_all(args: argparse.Namespace, known: Classes, work: Path) -> Checked:
    """Reads and checks everything, and prints the findings. Raises UserError if one is an error."""
    kind = args.mask_kind or "auto"
    pictures = kind in ("labels", "colours", "binary")
    given = [Path(path) for path in args.masks]
    items, kind_found, found = sources.collect(
        Path(args.images), given, "picture" if pictures else kind, args.mask_suffix or "", known
    )
    share = float(args.split) if args.split else None
    chosen = (args.train_list or "", args.val_list or "")
    seed = int(args.seed) if args.seed else None
    items, more = splits.split(items, share, seed, args.group_by or "", chosen)
    how = How(known, kind if pictures else "auto", bool(args.ignore_exif))
    say(f"{len(items):,} images, masks: {'pictures' if kind_found == 'picture' else kind_found}")
    pairs = list(scan(items, how, args.processes, work / ROWS))
    table, of_table = judge.values_table(pairs, how)
    bands, unlike = judge.bands_of(pairs)
    found += more + of_table + unlike + judge.judge(pairs, how, table)
    report(found, work / own_options.FINDINGS, f"{args.dataset} cannot be made")
    return Checked(pairs, how, table, bands, found)


def work_of(args: argparse.Namespace) -> Path:
    return Path(args.data_root) / f"{prepare.WORK}-{args.dataset}"


def make(args: argparse.Namespace, known: Classes, request: str, lock: Lock) -> Manifest:
    work = prepare.work_folder(work_of(args))
    staging = work / args.dataset
    staging.mkdir(parents=True, exist_ok=True)
    pairs, how, table, bands, found = checked = check_all(args, known, work)
    plans, suffix = build.plan(pairs, bands, table)
    check_space(staging, sum(row.image_bytes for _, row in pairs) if args.copy else 0, 2 * len(pairs))
    job = build.Job(str(staging), how, table, bands, bool(args.copy))
    entries, links = build.write(plans, job, args.processes)
    moments = build.normalisation(plans, bands, args.processes)
    splits = {one: build.list_of(plans, one, suffix) for one in sources.SPLITS}
    described = describe(args.dataset, request, checked, splits, suffix, moments, links)
    (staging / "splits").mkdir(exist_ok=True)
    entries += [put(staging, f"splits/{one}.txt", listing(names)) for one, names in splits.items()]
    content = msgspec.json.format(msgspec.json.encode(described), indent=1) + b"\n"
    entries.append(put(staging, own_options.DESCRIPTION, content))
    entries.append(put(staging, own_options.FINDINGS, findings.table(found)))
    entries.append(put(staging, own_options.SHEET, sheet.page(described, pairs, how, table, found)))
    return finish(args, staging, entries, splits, found, lock)


def describe(
    name: str,
    request: str,
    checked: Checked,
    splits: dict[str, list[str]],
    suffix: str,
    moments: tuple[list[float], list[float]],
    links: int,
) -> Description:
    known, pairs = checked.how.classes, checked.pairs
    shares, weights = judge.frequencies(pairs, known, checked.table)
    return Description(
        name=name,
        request=request,
        classes=known.names,
        palette=known.palette,
        bands=checked.bands,
        ignore_exif=checked.how.ignore_exif,
        suffix=suffix,
        images={one: len(names) for one, names in splits.items()},
        short_side=int(np.median([min(row.picture.shown) for _, row in pairs if row.picture])),
        mean=moments[0],
        std=moments[1],
        frequencies=shares,
        weights=weights,
        masks=", ".join(sorted({row.mask_kind for _, row in pairs})),
        links=links,
    )


def report(found: list[Finding], file: Path, what: str) -> None:
    """Prints the findings, and writes all of them. Raises UserError if one is an error."""
    write_atomically(file, findings.table(found))
    findings.show(found)
    findings.stop_at_errors(found, what, str(file))


def md5(names: list[str]) -> str:
    return hashlib.md5(listing(names), usedforsecurity=False).hexdigest()


def listing(names: list[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def finish(
    args: argparse.Namespace,
    staging: Path,
    entries: list[manifest.Entry],
    splits: dict[str, list[str]],
    found: list[Finding],
    lock: Lock,
) -> Manifest:
    remove_strangers(staging, {entry.path for entry in entries})
    made = put_manifest(
        staging,
        args.dataset,
        entries,
        lists={name: {"count": len(names), "md5": md5(names)} for name, names in splits.items()},
        findings=findings.summary(found),
    )
    sync(staging)
    lock.check()
    prepare.publish(staging, Path(args.data_root) / args.dataset)
    shutil.rmtree(staging.parent)
    return made


def write_config(args: argparse.Namespace, root: Path) -> dict[str, str]:
    """Writes the config to the place, and from the base, that the launcher specified; returns the fields for
    `prepared`."""
    made, target = description(root), Path(args.write_config)
    model = config_file.model_of(base_path(args.base))
    base = config_file.base_name(args.base, target)
    crop = config_file.crop_of(made, args.crop or "", model)
    text = config_file.text_of(made, base, model, crop, bool(args.class_weights))
    if config_file.place(target, made.name, text):
        return {"config": str(target)}
    note = f"{target} was written or changed by hand and is left as it is"
    if unheeded := [own_options.option(one) for one in ("class_weights", "crop") if getattr(args, one)]:
        note += f": {' and '.join(unheeded)} changed nothing in it"
    return {"config": str(target), "note": f"{note}; --write-config FILE writes another"}


def base_path(base: str) -> Path:
    """The base's file; for PACKAGE::PATH, the package's copy."""
    package, colons, inside = base.partition("::")
    if not colons:
        return Path(base)
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"--base {base}: {package} is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / ".mim" / "configs" / inside
