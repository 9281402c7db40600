"""The user's data: every error in it names the file, and a first start checks some of it.

A label that is not a class, or a mask that is missing or of another size, would otherwise show up late, as
some library's error without a file name. `look` takes seconds, on rank 0, before the training; what it has
not checked is named by `sample` and `blame` when it comes up. `--set baton.check_data=False` disables `look`.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jobs.catalog import listing
from jobs.catalog.classes import differ
from jobs.mmseg import pictures
from jobs.run.errors import UNREACHABLE, UserError, in_a_line

SECONDS = 3.0
"""How long `look` reads files of one dataset at most; it samples a large one evenly."""
STOCK = ("mmseg", "mmcv", "jobs")
"""Packages whose transforms do not change the meaning of labels."""
TRANSIENT = (*UNREACHABLE, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
"""Errors of a machine: the next start may be able to read the file."""
ESCAPE = "--set baton.check_data=False takes the data as it is"


class DataError(UserError):
    """Wrong data: which file, what is in it, what was expected.

    torch re-raises an exception of a data loader worker with that worker's traceback as its message; only the
    original message is kept here.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rstrip().rpartition(f"{DataError.__name__}: ")[2])


class LoadingError(RuntimeError):
    """A sample could not be loaded, for a reason that may be gone at the next start."""


# -------------------------------------------------------------------------------------------------- naming


def sample(dataset: Any, index: int) -> Any:
    """`dataset[index]`. Instead of whatever loading raises, raises DataError, or LoadingError if the machine
    is to blame, naming the sample's files."""
    try:
        return dataset[index]
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        text = f"{named(info_of(dataset, index))} cannot be loaded: {in_a_line(error)}"
        raise (LoadingError if transient(error) else DataError)(text) from error


def transient(error: BaseException) -> bool:
    """Whether the machine is to blame for an error, or for one in its chain of causes."""
    one: BaseException | None = error
    seen: set[int] = set()  # `raise error from error` makes an error its own cause
    while one is not None and id(one) not in seen:
        if isinstance(one, MemoryError) or (isinstance(one, OSError) and one.errno in TRANSIENT):
            return True
        seen.add(id(one))
        one = one.__cause__ or one.__context__
    return False


def info_of(dataset: Any, index: int) -> dict[str, Any]:
    """The dataset's info about a sample; {} if it has none."""
    with contextlib.suppress(Exception):
        return dict(dataset.get_data_info(index))
    return {}


def named(info: dict[str, Any]) -> str:
    """The files of a sample."""
    image, mask = info.get("img_path"), info.get("seg_map_path")
    if not image:
        return "a sample of the dataset"
    return f"{image} (with the mask {mask})" if mask else str(image)


def blame(runner: Any, batches: Iterable[Any]) -> DataError | None:
    """After a failed step: the error in the data of these batches; None if nothing is wrong with it."""
    with contextlib.suppress(Exception):  # only the first error matters
        paths = {s.metainfo.get("img_path") for batch in batches for s in batch["data_samples"]}
        classes = classes_of(runner.model)
        for leaf in leaves(runner.train_loop.dataloader.dataset):
            for number in range(len(leaf)):
                info = leaf.get_data_info(number)
                if info.get("img_path") not in paths:
                    continue
                try:
                    Reader(leaf, *classes).labels(info)
                except DataError as found:
                    return found
    return None


def build(description: Any) -> Any:
    """Builds a dataset from its config. Raises DataError if it has no images."""
    from mmengine.registry import DATASETS

    try:
        dataset = DATASETS.build(description)
        if hasattr(dataset, "full_init"):
            dataset.full_init()
        empty = len(dataset) == 0
    except ValueError as error:
        # NumPy's, of the list of all samples.
        if "at least one array to concatenate" not in str(error):
            raise
        empty = True
    if empty:
        raise DataError(why_empty(description))
    return dataset


def why_empty(description: Any) -> str:
    """Which folder, suffix or list of a dataset yields nothing, and what is there instead."""
    from mmengine.registry import DATASETS

    for one in descriptions(description):
        dataset: Any = None
        with contextlib.suppress(Exception):
            dataset = DATASETS.build(dict(one) | {"lazy_init": True, "pipeline": []})
            if dataset.load_data_list():
                continue
        names = getattr(dataset, "ann_file", None) or one.get("ann_file")
        if names and Path(names).is_file():
            return f"the dataset has no images: {names} names none"
        prefix = getattr(dataset, "data_prefix", None) or one.get("data_prefix") or {}
        folder = prefix.get("img_path") or one.get("data_root") or ""
        suffix = getattr(dataset, "img_suffix", "") or one.get("img_suffix", "")
        return listing.nothing_there(Path(folder), suffix)
    return "the dataset has no images"


def descriptions(node: Any) -> Iterator[dict[str, Any]]:
    """The configs of the innermost datasets inside wrappers."""
    if isinstance(node, dict) and ("dataset" in node or "datasets" in node):
        yield from descriptions(node.get("dataset") or node["datasets"])
    elif isinstance(node, dict):
        yield node
    elif isinstance(node, (list, tuple)):
        for one in node:
            yield from descriptions(one)


# -------------------------------------------------------------------------------------------- a first start


def look(runner: Any) -> None:
    """Raises DataError for whatever is wrong with a training's datasets, as far as seconds can show."""
    loops = {"train_dataloader": runner.train_loop, "val_dataloader": runner.val_loop}
    check_batches(runner)
    classes = classes_of(runner.model)
    stock = type(getattr(runner.model, "module", runner.model)).__module__.partition(".")[0] in STOCK
    for where, loop in loops.items():
        for leaf in leaves(loop.dataloader.dataset) if loop is not None else []:
            look_at(leaf, where, *classes)
            if where == "val_dataloader" and stock:
                check_classes(leaf, where, classes[0])
    if runner.val_loop is not None:
        check_order(runner)


def classes_of(model: Any) -> tuple[int | None, int]:
    """(number of classes, ignored label) of the model's head; None for the former if it does not say."""
    head: Any = getattr(getattr(model, "module", model), "decode_head", None)
    head = head[-1] if hasattr(head, "__getitem__") else head
    count, ignored = getattr(head, "num_classes", None), getattr(head, "ignore_index", 255)
    return (count if isinstance(count, int) else None), (ignored if isinstance(ignored, int) else 255)


def leaves(dataset: Any) -> Iterator[Any]:
    """The datasets inside wrappers, if they have samples by number and a pipeline of transforms."""
    if hasattr(dataset, "datasets"):
        for one in dataset.datasets:
            yield from leaves(one)
    elif hasattr(getattr(dataset, "pipeline", None), "transforms") and hasattr(dataset, "get_data_info"):
        # Wrappers, such as ours, delegate attributes that they do not have.
        yield getattr(dataset, "dataset", dataset)
    elif hasattr(dataset, "dataset"):
        yield from leaves(dataset.dataset)


class Reader:
    """Reads a sample's image and mask with the dataset's own pipeline."""

    def __init__(self, dataset: Any, classes: int | None, ignored: int) -> None:
        transforms = dataset.pipeline.transforms
        self.steps = [step for step in transforms if type(step).__name__.startswith("Load")]
        # What a user's transform does to the labels, only the training will see.
        self.told = all(type(step).__module__.partition(".")[0] in STOCK for step in transforms)
        self.classes, self.ignored = classes, ignored

    def labels(self, info: dict[str, Any]) -> set[int]:
        """The labels in a sample's mask; empty if they cannot be determined. Raises DataError for files that
        cannot be read, do not match, or have labels that are not classes."""
        try:
            found: Any = dict(info)
            for step in self.steps:
                found = step(found)
        except Exception as error:
            if transient(error):
                return set()
            raise DataError(f"{named(info)} cannot be loaded: {in_a_line(error)}") from None
        mask = found.get("gt_seg_map") if found else None
        if mask is None or not self.told:
            return set()
        file = info.get("seg_map_path") or named(info)
        if mask.ndim != 2:
            raise DataError(
                f"{file} is a colour image ({mask.shape[-1]} channels): a mask has one channel, whose values "
                "are class numbers; convert its colours to those"
            )
        image = found.get("img")
        if image is not None and image.shape[:2] != mask.shape:
            swapped = image.shape[:2] == mask.shape[::-1]
            hint = " (does its EXIF turn the image?)" if swapped else ""
            raise DataError(
                f"{info.get('img_path')} has {pictures.size(image)} pixels and its mask {file} has "
                f"{pictures.size(mask)}{hint}: their sizes must be equal"
            )
        labels = {int(label) for label in np.flatnonzero(np.bincount(mask.reshape(-1)))}
        count = self.classes
        if count and (wrong := sorted(labels - set(range(count)) - {self.ignored})):
            listed = ", ".join(map(str, wrong[:5])) + (", …" if len(wrong) > 5 else "")
            raise DataError(
                f"{file} has label {listed}, but the model has num_classes={count}: labels are 0 to "
                f"{count - 1}, and {self.ignored} is ignored; correct the masks, or num_classes"
            )
        return labels


def look_at(dataset: Any, where: str, classes: int | None, ignored: int) -> None:
    """Reads samples of one dataset for `SECONDS`, in a fixed random order. Raises DataError."""
    began = time.monotonic()
    check_files(dataset, where)
    reader = Reader(dataset, classes, ignored)
    seen: set[int] = set()
    looked = 0
    for index in np.random.default_rng(0).permutation(len(dataset)):
        labels = reader.labels(dataset.get_data_info(int(index)))
        seen |= labels
        looked += bool(labels)
        if time.monotonic() - began > SECONDS:
            break
    if classes is None or not looked:
        return
    masks = f"all {looked} masks looked at" if looked > 1 else "its one mask"
    if seen == {ignored}:
        raise DataError(
            f"{where}: {masks} in {folder_of(dataset)} hold nothing but {ignored}, which is ignored: "
            "nothing can be learned from them"
        )
    if classes > 1 and seen == {0, ignored} and ignored == 255:
        raise DataError(
            f"{where}: {masks} hold nothing but 0 and 255, in {folder_of(dataset)}, and 255 is ignored, so "
            f"class 0 would be the only one of {classes}: write class numbers, 1 instead of 255 "
            f"({ESCAPE})"
        )


def check_classes(dataset: Any, where: str, count: int | None) -> None:
    """Raises DataError if a model has more classes than the dataset that it is validated on: it may predict
    others, which only the evaluation after the training would show. A training dataset may have fewer, as one
    of several."""
    names = dataset.metainfo.get("classes") or ()
    if count and names and count > len(names) and Reader(dataset, None, 255).told:
        raise DataError(
            f"{where}: {differ(count, names)}: num_classes={len(names)} in every head, or more "
            f"classes in the dataset's metainfo ({ESCAPE})"
        )


def folder_of(dataset: Any) -> Path:
    return Path(dataset.get_data_info(0).get("seg_map_path") or "").parent


def check_files(dataset: Any, where: str) -> None:
    """Raises DataError if an image or mask is missing. Lists each folder once: on a network file system, that
    takes a fraction of the time of checking every file."""
    from jobs.mmseg.packed import PackedBackend

    backend = PackedBackend()
    listed: dict[str, set[str]] = {}
    missing: list[tuple[str, str, str]] = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        for key, what in (("img_path", "the image"), ("seg_map_path", "the mask")):
            path = info.get(key)
            if not isinstance(path, str) or "://" in path:
                continue
            folder, _, name = path.rpartition("/")
            if folder not in listed:
                place = Path(folder or ".")
                listed[folder] = {one.name for one in place.iterdir()} if place.is_dir() else set()
            if name not in listed[folder] and not backend.isfile(path):
                missing.append((what, path, str(info.get("img_path"))))
    if not missing:
        return
    if why := list_of(dataset):
        raise DataError(f"{where}: {why}")
    what, path, image = missing[0]
    of = f" of {image}" if what == "the mask" else ""
    like = len({image for *_, image in missing})
    raise DataError(
        f"{where}: {what} {path}{of} is not there ({like} of {len(dataset)} are like this)"
        f"{other_suffix(Path(path), listed)}"
    )


def list_of(dataset: Any) -> str:
    """What is wrong with a dataset's list of images, if it is read as mmseg does; "" if nothing is."""
    from mmseg.datasets import BaseSegDataset

    own = getattr(type(dataset), "load_data_list", None)
    if own is not BaseSegDataset.load_data_list or not Path(dataset.ann_file).is_file():
        return ""
    folder = Path(dataset.data_prefix.get("img_path") or "")
    return listing.wrong_list(Path(dataset.ann_file), folder, dataset.img_suffix)


def other_suffix(path: Path, listed: dict[str, set[str]]) -> str:
    same = [name for name in listed.get(str(path.parent), ()) if Path(name).stem == path.stem]
    return f"; there is {sorted(same)[0]}: set the suffix in the config's dataset" if same else ""


def check_order(runner: Any) -> None:
    """Raises DataError if the annotation of the first validation sample differs in size from the image:
    predictions have the image's own size."""
    dataset = runner.val_loop.dataloader.dataset
    stock = [leaf for leaf in leaves(dataset) if Reader(leaf, None, 255).told]
    if not stock or type(runner.model).__module__.partition(".")[0] not in (*STOCK, "mmengine"):
        return
    first = sample(dataset, 0)
    given = first.get("data_samples") if isinstance(first, dict) else None
    if given is None or "gt_sem_seg" not in given or not given.metainfo.get("ori_shape"):
        return
    truth, shape = given.gt_sem_seg.data.shape[-2:], tuple(given.metainfo["ori_shape"][:2])
    if tuple(truth) != shape:
        raise DataError(unequal(given.metainfo, shape, truth))


def unequal(meta: Any, image: Any, truth: Any) -> str:
    """The message for an annotation that differs in size from its image (both H × W)."""
    return (
        f"{meta.get('img_path')} has {image[1]} × {image[0]} pixels and its annotation "
        f"{truth[1]} × {truth[0]}: in the pipeline of val_dataloader and test_dataloader LoadAnnotations "
        "belongs behind Resize, for what is predicted has the image's own size"
    )


def check_batches(runner: Any) -> None:
    """Raises DataError if a rank would get a single sample although the model cannot train on one."""
    if (name := single_pooled(runner.model)) is None:
        return
    loop = runner.train_loop
    plan, sampler = loop.plan, loop.batches.sampler
    from jobs.mmseg.sampling import deal

    for iteration in {0, plan.iterations - 1}:
        batch = plan.global_batch(iteration)
        for rank in range(sampler.ranks):
            if any(len(part) == 1 for part, _ in deal(batch, rank, sampler.ranks, sampler.rounds)):
                raise DataError(
                    f"a batch of one sample gives {name} one value per channel, which batch norm cannot "
                    f"learn from: {plan.samples} images in batches of {plan.batch}"
                    f"{f' on {sampler.ranks} ranks' if sampler.ranks > 1 else ''} give one; use "
                    f"{'fewer GPUs, ' if sampler.ranks > 1 else ''}another train_dataloader.batch_size, or "
                    "train_dataloader.drop_last=True"
                )


def single_pooled(model: Any) -> str | None:
    """The part of a model with a batch norm after pooling to a single pixel (PSPHead, ASPP); None if there is
    none."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    for name, module in getattr(model, "module", model).named_modules():
        parts = list(module.children()) if isinstance(module, torch.nn.Sequential) else []
        pools = [isinstance(p, torch.nn.AdaptiveAvgPool2d) and p.output_size in (1, (1, 1)) for p in parts]
        after = parts[pools.index(True) + 1 :] if any(pools) else []
        norms = [one for part in after for one in part.modules() if isinstance(one, _BatchNorm)]
        if any(not isinstance(one, torch.nn.SyncBatchNorm) for one in norms):
            return name
    return None
