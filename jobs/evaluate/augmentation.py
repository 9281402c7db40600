"""Test-time augmentation: from the config (`tta_model`, `tta_pipeline`), or scales and flips."""

from __future__ import annotations

import copy
import itertools
from typing import Any

from jobs.catalog.supported import name_of
from jobs.mmseg import model as models
from jobs.run.errors import UserError, one_line

RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Scales relative to the test size, each also flipped, as in mmseg's configs (configs/_base_/datasets)."""
FLIP_KEYS = ("flip", "flip_direction")
"""What a model must know about an image to flip its result back."""


def use(cfg: Any) -> str:
    """Makes all test datasets in the config load augmented images, in place. Returns which augmentation is
    used: "the config's", or "6 scales, flipped". Raises UserError for a pipeline that cannot be augmented."""
    given = cfg.get("tta_pipeline")
    for description in _with_pipelines(cfg.test_dataloader.dataset):
        description["pipeline"] = copy.deepcopy(given) if given else augmented(description["pipeline"])
    return "the config's" if given else f"{len(RATIOS)} scales, flipped"


def wrapped(cfg: Any, model: Any) -> Any:
    """The config's `tta_model`, or mmseg's SegTTAModel, around a model. Raises UserError if it cannot be
    built."""
    from mmseg.registry import MODELS

    description = dict(cfg.get("tta_model") or {"type": "SegTTAModel"}) | {"module": model}
    try:
        built = MODELS.build(description)
    except (KeyError, TypeError, AssertionError) as error:
        reason = one_line(error, 200)
        raise UserError(
            f"the config's tta_model {description.get('type')} cannot be built: {reason}"
        ) from None
    built.dataset_meta = model.dataset_meta
    if getattr(model, "out_channels", None) == 1:
        take_probabilities_as_such(built)
    return built.eval()


def take_probabilities_as_such(built: Any) -> None:
    """mmseg applies a sigmoid to a single output, and its SegTTAModel does so again: then no pixel is below
    one half. So SegTTAModel gets the logits, which its sigmoid turns into the probabilities again."""
    import torch
    from mmengine.structures import PixelData
    from mmseg.models import SegTTAModel

    if type(built).merge_preds is not SegTTAModel.merge_preds:
        return
    merge = built.merge_preds

    def merged(of_images: Any) -> Any:
        for one in itertools.chain.from_iterable(of_images):
            one.set_data({"seg_logits": PixelData(data=torch.logit(one.seg_logits.data))})
        return merge(of_images)

    built.merge_preds = merged


def augmented(pipeline: Any) -> list[dict[str, Any]]:
    """A test pipeline with every image at RATIOS of the size to which it is resized (of its own, without a
    Resize), each also flipped. The annotation is loaded last, so that it stays unchanged."""
    steps = [copy.deepcopy(dict(step)) for step in pipeline]
    annotations = [step for step in steps if models.loads_annotations(step)]
    steps = [step for step in steps if not models.loads_annotations(step)]
    if any(name_of(step.get("type")) == "TestTimeAug" for step in steps):
        raise UserError("the config's test pipeline already has a TestTimeAug: evaluate it without --tta")
    sized = [number for number, step in enumerate(steps) if name_of(step.get("type")) == "Resize"]
    if len(sized) > 1:
        raise UserError("the config's test pipeline has several Resize steps: give the config a tta_pipeline")
    at = sized[0] if sized else 1
    resize = steps[at] if sized else {"type": "Resize", "scale_factor": 1.0, "keep_ratio": True}
    rest = steps[at + 1 :] if sized else steps[at:]
    for step in rest:
        if step.get("meta_keys"):
            step["meta_keys"] = tuple(dict.fromkeys((*step["meta_keys"], *FLIP_KEYS)))
    flips = [{"type": "RandomFlip", "prob": prob, "direction": "horizontal"} for prob in (0.0, 1.0)]
    choices = [
        [_scaled(resize, ratio) for ratio in RATIOS],
        flips,
        *([step] for step in (*annotations, *rest)),
    ]
    return [*steps[:at], {"type": "TestTimeAug", "transforms": choices}]


def _scaled(resize: dict[str, Any], ratio: float) -> dict[str, Any]:
    if resize.get("scale"):
        size = resize["scale"]
        sides = (size, size) if isinstance(size, (int, float)) else size
        return resize | {"scale": tuple(max(1, round(side * ratio)) for side in sides)}
    factor = resize.get("scale_factor") or 1.0
    factors = [one * ratio for one in factor] if isinstance(factor, (list, tuple)) else factor * ratio
    return resize | {"scale_factor": tuple(factors) if isinstance(factors, list) else factors}


def _with_pipelines(node: Any) -> list[Any]:
    """The configs of all datasets with a pipeline inside wrappers (ConcatDataset, RepeatDataset)."""
    if isinstance(node, (list, tuple)):
        return [found for one in node for found in _with_pipelines(one)]
    if not isinstance(node, dict):
        return []
    found = [node] if node.get("pipeline") else []
    return found + [one for key in ("dataset", "datasets") for one in _with_pipelines(node.get(key))]
