"""A run's trained model, for evaluation and inference: the config's model with a checkpoint's weights."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.catalog.supported import name_of
from jobs.engine import safe_load
from jobs.mmseg import compat
from jobs.run import checkpoint_files
from jobs.run.directory import Run
from jobs.run.errors import UserError, one_line


def chosen_checkpoint(run: Run, which: str) -> Path:
    """The file meant by `which`: `best` (the last, if there is no best), `last`, or a path, absolute or below
    the run's checkpoints. Raises UserError if there is none."""
    if which in ("best", "last"):
        found = checkpoint_files.meant(run.checkpoints, which)
        if found is None:
            raise UserError(
                f"run {run.name} has no checkpoint yet: train it first (status.py {run.name} "
                "shows how far it is)"
            )
        return found.path
    for path in (Path(which), run.checkpoints / which):
        if path.is_file():
            return path.resolve()
    raise UserError(f"there is no checkpoint {which}; give best, last, or the path of a .pth file")


def config(run: Run) -> Any:
    """The resolved config that the run trains with; what it tests on is what it validates on, unless it says
    otherwise. Of a run that has not started (whose checkpoint is from elsewhere) it is resolved here.

    Raises UserError for a config with nothing to test on.
    """
    from mmengine.config import Config

    if run.config.is_file():
        cfg = Config.fromfile(str(run.config))
    else:
        from jobs.engine.session import Session
        from jobs.mmseg.config import resolve

        cfg = resolve(Session(run, run.request(), 0, 1, 0, 1, start=0, job=None), trained=False)
    for what in ("dataloader", "evaluator"):
        cfg[f"test_{what}"] = cfg.get(f"test_{what}") or cfg.get(f"val_{what}")
    if not cfg.test_dataloader:
        raise UserError(
            f"{run.config} has neither test_dataloader nor val_dataloader: there is nothing to test on"
        )
    return cfg


WRAPPERS = [(r"_orig_mod\.", ""), (r"^module\.", "")]
"""Prefixes in the names of weights that were saved inside a wrapper (torch.compile's, one for several GPUs),
and what replaces them."""


def load(cfg: Any, checkpoint: Path, device: str) -> Any:
    """The segmentor of `cfg` with the weights of `checkpoint`, on `device`, in evaluation mode.

    Its `dataset_meta` has `classes` and `palette`. Every weight must be there and have its place: raises
    UserError for a checkpoint of another model, or one that is damaged, and for a model of something else
    than classes.
    """
    from mmengine.registry import init_default_scope
    from mmseg.models import DepthEstimator
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    from jobs.catalog import pretrained

    register_all_modules(init_default_scope=False)
    init_default_scope(cfg.get("default_scope") or "mmseg")
    description = copy.deepcopy(cfg.model)
    pretrained.forget(description)
    if device == "cpu":
        synchronised_to_plain(description)
    model = MODELS.build(description)
    if isinstance(model, DepthEstimator):
        raise UserError("the config's model estimates depth, and only models of classes are used here")
    weights, classes = read(checkpoint)
    try:
        missing, unknown = put(model, weights)
    except RuntimeError as error:
        # torch lists every weight with a different shape, after a headline.
        first = str(error).partition("\n")[2].partition("\n")[0]
        raise UserError(f"{checkpoint} does not fit the run's model: {' '.join(first.split())}") from None
    if missing or unknown:
        example = (missing or unknown)[0]
        raise UserError(
            f"{checkpoint} does not fit the run's model: {len(missing)} weights are missing and "
            f"{len(unknown)} unknown (for example {example})"
        )
    model.dataset_meta = meta(cfg)
    for doubt in doubts(weights, classes, model.dataset_meta["classes"]):
        print(f"warning: {checkpoint}: {doubt}", flush=True)
    return model.to(device).eval()


def doubts(weights: dict[str, Any], trained: Sequence[str], tested: Sequence[str]) -> list[str]:
    """Why results of a checkpoint that fits may mean nothing. `trained`: its own class names, if it has any;
    `tested`: those of the config's test dataset."""
    found = []
    if trained and list(trained) != list(tested):
        pairs = enumerate(itertools.zip_longest(trained, tested, fillvalue="none"))
        number, (theirs, ours) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
        found.append(
            f"it was trained with other classes than the config's test dataset has: class {number} is "
            f"{theirs} there, {ours} here"
        )
    tensors = {name: value for name, value in weights.items() if hasattr(value, "isnan")}
    if broken := [name for name, value in tensors.items() if value.isnan().any()]:
        found.append(f"{len(broken)} of its weights are NaN (such as {broken[0]}): its training has diverged")
    return found


def put(model: Any, weights: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Loads weights into a model. Returns the missing names, and the unexpected ones.

    Weights that the model itself drops on loading are not missing: mmpretrain's Swin-v2, for example, saves
    tables that it computes from its window size, and computes them again.
    """
    missing, unknown = model.load_state_dict(weights, strict=False)
    return [name for name in missing if name not in weights], unknown


def weights_of(checkpoint: Path) -> dict[str, Any]:
    """Name -> weight of a checkpoint's model. Raises UserError if it is damaged or not a checkpoint."""
    return read(checkpoint)[0]


def read(checkpoint: Path) -> tuple[dict[str, Any], list[str]]:
    """`weights_of`, and the names of the classes that it was trained with, as mmseg saves them ([] if it does
    not say)."""
    try:
        content = compat.load(checkpoint)
    except Exception as error:
        # A damaged file may make the reader raise anything; it never executes code from it.
        why = checkpoint_files.why_unsaved(checkpoint) if checkpoint.is_file() else ""
        if name := safe_load.unknown(error):
            why = f"holds more than weights ({name}): save its state_dict() alone"
        why = f"it {why}" if why else one_line(error, 200)
        raise UserError(f"{checkpoint} cannot be loaded: {why}") from None
    if why := checkpoint_files.damage(checkpoint):
        raise UserError(f"{checkpoint} {why}: copy it again, or choose another with --checkpoint")
    weights = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise UserError(f"{checkpoint} is not a model checkpoint: it has no named weights")
    for prefix, without in WRAPPERS:
        weights = {re.sub(prefix, without, name): value for name, value in weights.items()}
    saved = content.get("meta")
    saved = saved if isinstance(saved, dict) else {}
    known = saved.get("dataset_meta")
    # Before mmseg 1.0, `meta` itself had them.
    classes = known.get("classes") if isinstance(known, dict) else saved.get("CLASSES")
    return weights, [str(one) for one in classes] if isinstance(classes, (list, tuple)) else []


def meta(cfg: Any) -> dict[str, Any]:
    """Class names and palette (RGB, 0..255) of the config's test dataset; its files need not exist if its
    class knows both."""
    from mmseg.registry import DATASETS

    dataset = dict(innermost(cfg.test_dataloader.dataset))
    kind = DATASETS.get(dataset["type"]) if isinstance(dataset["type"], str) else dataset["type"]
    if hasattr(kind, "_load_metainfo"):
        known = kind._load_metainfo(copy.deepcopy(dataset.get("metainfo")))
        if known.get("classes") and len(known["classes"]) == len(known.get("palette") or ()):
            return dict(known)
    return dict(DATASETS.build(dataset | {"lazy_init": True}).metainfo)


def test_pipeline(cfg: Any) -> list[dict[str, Any]]:
    """The transforms of the config's test dataset, copied."""
    steps = innermost(cfg.test_dataloader.dataset).get("pipeline") or []
    return [copy.deepcopy(dict(step)) for step in steps]


def loads_annotations(step: Any) -> bool:
    """Whether a transform reads the annotation (LoadAnnotations, LoadBiomedicalAnnotation, …)."""
    name = name_of(step.get("type"))
    return name.startswith("Load") and "Annotation" in name


def turns(cfg: Any) -> bool:
    """Whether the config's test pipeline applies the EXIF orientation, as mmcv's LoadImageFromFile does in
    some of its modes (mmcv/image/io.py)."""
    for step in test_pipeline(cfg):
        if name_of(step.get("type")) == "LoadImageFromFile":
            backend = step.get("imdecode_backend") or "cv2"
            return backend in ("cv2", "pillow") and step.get("color_type", "color") in ("color", "grayscale")
    return True


def innermost(dataset: Any) -> Any:
    """The dataset inside wrappers such as RepeatDataset; the first of several."""
    while "dataset" in dataset or "datasets" in dataset:
        dataset = dataset["dataset"] if "dataset" in dataset else dataset["datasets"][0]
    return dataset


def synchronised_to_plain(node: Any) -> None:
    """Replaces SyncBN by BN, in place: it does not run on the CPU, and in evaluation both are the same."""
    if isinstance(node, dict):
        if name_of(node.get("type")) in ("SyncBN", "SyncBatchNorm"):
            node["type"] = "BN"
        for value in node.values():
            synchronised_to_plain(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            synchronised_to_plain(value)


def reading(cfg: Any) -> tuple[Any, Any]:
    """The transforms of the config's test dataset, for an image without annotation: the one that reads the
    file, and the rest.

    Raises UserError if there are none, or if the first does not read a file.
    """
    from mmengine.dataset import Compose

    steps = test_pipeline(cfg)
    steps = [step for step in steps if not loads_annotations(step)]
    if not steps or name_of(steps[0]["type"]) == "LoadImageFromNDArray":
        raise UserError("the config's test pipeline does not begin by reading an image from a file")
    return Compose(steps[:1]), Compose(steps[1:])
