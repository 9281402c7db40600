"""`--check CONFIG`: the checks for one's own datasets, applied to any dataset that a config reads."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from jobs.catalog.classes import IGNORED, Classes, differ
from jobs.prepare.own import findings, judge, reading
from jobs.prepare.own.findings import Finding, error, warning
from jobs.prepare.own.judge import Pair
from jobs.prepare.own.scan import How, scan
from jobs.prepare.own.sources import Item
from jobs.prepare.progress import say
from jobs.run.directory import write_atomically
from jobs.run.errors import UserError, in_a_line

LOADERS = {"train": ("train_dataloader",), "val": ("val_dataloader", "test_dataloader")}
FINDINGS = "findings.tsv"


class Read(msgspec.Struct):
    """A dataset that a config reads."""

    split: str
    items: list[Item]
    classes: tuple[str, ...]
    table: dict[int, int]
    """A mask's value -> class."""
    ignore_exif: bool
    load: Any
    """The config's loading step; None for one that is not mmcv's."""
    first: Callable[[], list[Finding]]
    """The findings from the first image in the config's pipeline."""


def check_config(args: argparse.Namespace) -> int:
    """Checks everything that the config trains and validates on; returns the number of images.

    Raises UserError if a dataset cannot be read at all, or if there is an error in it.
    """
    path = Path(args.check)
    cfg = read_config(path)
    found: list[Finding] = []
    pairs: list[Pair] = []
    seen: set[tuple[str, str]] = set()
    names: tuple[str, ...] = ()
    for dataset in datasets(cfg, path):
        items = [item for item in dataset.items if (item.image, item.mask) not in seen]
        seen |= {(item.image, item.mask) for item in items}
        classes = Classes(dataset.classes, (), dataset.table, {}, True)
        how = How(classes, "labels", dataset.ignore_exif)
        names = names or dataset.classes
        before = len(found)
        for item, row in scan(items, how, args.processes, None):
            found += judge.of_one(item, row, how, dataset.table)
            if row.several_bands and not row.problems:  # LoadAnnotations uses them as they are
                text, fix = "has several bands, and a training reads one", "save it with one, in grey"
                found.append(error("several bands", item.mask, text, fix))
            counts = dict(judge.by_class(row, dataset.table))
            pairs.append((item, msgspec.structs.replace(row, values=counts, classes=True)))
            if dataset.load and row.picture and not row.picture.plain:
                found += of_reading(dataset.load, Path(item.image))
        if all(one.level != findings.ERROR for one in found[before:]):
            found += dataset.first()
    if not pairs:
        raise UserError(f"{path} reads no images: none of its dataloaders has a dataset with a type")
    found += of_model(cfg, names)
    found += judge.of_classes(pairs, Classes(names, (), {}, {}, True), {}) + judge.duplicates(pairs)
    where = "above"
    if args.run:
        write_atomically(Path(args.run) / FINDINGS, findings.table(found))
        where = str(Path(args.run) / FINDINGS)
    findings.show(found)
    findings.stop_at_errors(found, f"{args.check} cannot be trained on its data", where)
    say(f"{len(pairs):,} images and their masks: no errors, {len(found):,} warnings")
    return len(pairs)


def read_config(path: Path) -> Any:
    from jobs.mmseg import compat

    compat.prepare()
    from jobs.mmseg import config

    cfg = config.read(path)
    config.import_modules(cfg, str(path))
    return cfg


def datasets(cfg: Any, path: Path) -> Iterator[Read]:
    """Each dataset below the config's data loaders, built by its own class. Raises UserError."""
    import mmseg.datasets
    from mmengine.registry import DATASETS, init_default_scope

    from jobs.mmseg import data, packed

    assert mmseg.datasets
    init_default_scope(cfg.get("default_scope") or "mmseg")
    for split, loaders in LOADERS.items():
        for loader in loaders:
            for leaf in data.descriptions((cfg.get(loader) or {}).get("dataset")):
                if "type" not in leaf:
                    continue
                description = {**leaf, "pipeline": [], "lazy_init": False}
                packed.read_packed(description)
                try:
                    yield read_of(DATASETS.build(description), leaf, split)
                except (Exception, SystemExit) as problem:  # a user's class may raise anything
                    lacking = missing(leaf)
                    text = f"{lacking} is not there" if lacking else in_a_line(problem)
                    raise UserError(
                        f"{path}: {loader}: its dataset {leaf.get('type')} cannot be read: {text}"
                    ) from None


def missing(leaf: dict[str, Any]) -> str:
    """A file or folder in a dataset's config that does not exist, not even in a packed dataset; "" if there
    is none. mmseg's classes assert that it exists, some without a message."""
    from jobs.mmseg import packed

    prefixes = leaf.get("data_prefix")
    names = [leaf.get("ann_file"), *(prefixes.values() if isinstance(prefixes, dict) else [])]
    paths = [Path(leaf.get("data_root") or "", name) for name in names if isinstance(name, str) and name]
    return next((str(path) for path in paths if not packed.exists(path)), "")


def place_of(path: str) -> str:
    """Where a training finds a file: the path below its container if it lies in a packed dataset, as
    `images.read_file` takes it."""
    from jobs.mmseg import packed

    found = packed.find(path) if path else None
    return str(found[0].path / found[1]) if found and found[1] in found[0].files else path


def read_of(dataset: Any, leaf: dict[str, Any], split: str) -> Read:
    classes = tuple(dataset.metainfo.get("classes") or ())
    items = []
    for index in range(len(dataset)):
        one = dataset.get_data_info(index)
        image, mask = (place_of(str(one.get(key) or "")) for key in ("img_path", "seg_map_path"))
        items.append(Item(image, image, mask, "picture", split=split))
    if not items:
        raise UserError("it has no images")
    if not classes:
        raise UserError("it names no classes (metainfo)")
    table = table_of(
        len(classes), dataset.label_map, dataset.reduce_zero_label, getattr(dataset, "ignore_index", IGNORED)
    )
    steps = leaf.get("pipeline")

    def first() -> list[Finding]:
        return try_first(dataset, steps, items[0])

    return Read(split, items, classes, table, ignores_exif(steps), loading(steps), first)


def try_first(dataset: Any, steps: Any, item: Item) -> list[Finding]:
    """The error of the config's pipeline for a sound image, which would end each training."""
    from mmengine.dataset import Compose

    if not steps or not all(Path(path).is_file() for path in (item.image, item.mask) if path):
        return []  # packed: a training reads it by other means
    try:
        dataset.pipeline = Compose(steps)
        dataset[0]  # a class of the user's may add to it
    except (Exception, SystemExit) as problem:
        text = f"the config's pipeline ends at it ({in_a_line(problem, 200)})"
        return [error("pipeline", item.image, text, "mend the pipeline")]
    return []


def table_of(count: int, label_map: dict[int, int] | None, reduce_zero: bool, ignored: int) -> dict[int, int]:
    """Mask value -> class, as in mmseg's LoadAnnotations (mmseg/datasets/transforms/loading.py), without
    values that do not become a class."""
    table = {}
    for value in range(256):
        label = (label_map or {}).get(value, value)
        if reduce_zero:
            label = IGNORED if label in (0, IGNORED) else label - 1
        if label in (ignored, IGNORED):
            table[value] = IGNORED
        elif label < count:
            table[value] = label
    return table


def ignores_exif(pipeline: Any) -> bool:
    """Whether the config's loading step ignores the EXIF orientation."""
    for step in pipeline or []:
        if isinstance(step, dict) and str(step.get("type")).endswith("LoadImageFromFile"):
            colour = str(step.get("color_type", "color"))
            return "ignore_orientation" in colour or colour == "unchanged" or "imdecode_backend" in step
    return False


def loading(pipeline: Any) -> Any:
    """The step of a pipeline that reads an image's file, if it is mmcv's."""
    from mmengine.registry import TRANSFORMS

    for step in pipeline or []:
        if isinstance(step, dict) and step.get("type") in ("LoadImageFromFile", "mmcv.LoadImageFromFile"):
            return TRANSFORMS.build(dict(step))
    return None


def of_reading(load: Any, path: Path) -> list[Finding]:
    """Findings for an image that readers may interpret differently."""
    fix = "save it as a PNG of grey or RGB, as prepare.py --images does"
    if not path.is_file():  # in a packed dataset, whose images are converted
        return []
    if why := reading.unread(load, path):
        return [error("unread", str(path), f"the config's loading step cannot read it ({why})", fix)]
    if reading.misread(load, path):
        text = "the config's loading step gives other pixels than are stored (alpha, or what its bands mean)"
        return [warning("read otherwise", str(path), text, fix)]
    return []


def of_model(cfg: Any, classes: tuple[str, ...]) -> list[Finding]:
    heads = (cfg.get("model") or {}).get("decode_head") or []
    found = []
    for head in heads if isinstance(heads, (list, tuple)) else [heads]:
        number = head.get("num_classes") if isinstance(head, dict) else None
        if number is not None and classes and (text := differ(number, classes)):
            found.append(error("classes differ", "", text, f"num_classes={len(classes)} in every head"))
    return found
