"""Checks of what a config's author wrote, for mistakes that mmengine or mmseg would report late, unclearly or
never. The input is plain dicts, as in supported.py."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from jobs.catalog.supported import IOU_METRICS, IOU_OPTIONS, name_of, unmarked
from jobs.run.errors import UserError

SEGMENTORS = ("EncoderDecoder", "CascadeEncoderDecoder", "MultimodalEncoderDecoder")
"""Types of mmseg that follow `model.test_cfg`."""
PARAMWISE = {
    *("custom_keys", "bypass_duplicate", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult"),
    *("dwconv_decay_mult", "flat_decay_mult", "dcn_offset_lr_mult"),
}
"""All options of the paramwise_cfg of mmengine's DefaultOptimWrapperConstructor."""
SCHEDULERS = re.compile(
    "(Constant|CosineAnnealing|CosineRestart|Exponential|Linear|MultiStep|OneCycle|Poly|Step)"
    "(LR|Momentum|ParamScheduler)"
)
"""Those of mmengine, but for ReduceOnPlateau, which follows the validations."""
FACTORS = ("lr_mult", "decay_mult")
"""Those of each of its custom_keys."""
READ_BY_KEY = {
    "auto_scale_lr": {"enable", "base_batch_size"},
    "env_cfg": {"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"},
}
"""Parts of a config that mmengine's Runner looks these keys up in, and ignores the rest of."""
TESTING = ("mode", "crop_size", "stride")
"""What SEGMENTORS look up in `model.test_cfg`; a head may look up more."""


def check(values: dict[str, Any]) -> None:
    """Raises UserError for mistakes that mmengine or mmseg would report late, or unclearly. Values that are
    not known yet (launch/submit/literals.py) are accepted."""
    loader, scale = values.get("train_dataloader"), values.get("auto_scale_lr")
    size = loader.get("batch_size", 1) if isinstance(loader, dict) else 1
    if isinstance(size, (str, int, float)) and (type(size) is not int or size < 1):
        raise UserError(f"train_dataloader.batch_size is {size!r}: it must be a whole number of at least 1")
    if isinstance(scale, dict) and scale.get("enable") is True:
        base = scale.get("base_batch_size")
        if base is None or isinstance(base, str) or (type(base) in (int, float) and base <= 0):
            raise UserError(f"auto_scale_lr.base_batch_size is {base!r}: it must be a number above 0")
    if values.get("val_dataloader") is not None and isinstance(model := values.get("model"), dict):
        _check_testing(model)


def _check_testing(model: dict[str, Any]) -> None:
    """Raises UserError for a `test_cfg` with which mmseg's segmentors could not predict: otherwise, the first
    validation would fail."""
    if name_of(model.get("type")) not in SEGMENTORS or "test_cfg" not in model:
        return
    given = model["test_cfg"]
    if given is None or (isinstance(given, dict) and given.get("mode", "") in ("", None)):
        raise UserError("model.test_cfg has no mode: use test_cfg=dict(mode='whole') or mode='slide'")
    mode = given.get("mode") if isinstance(given, dict) else None
    if isinstance(mode, str) and mode not in ("whole", "slide"):
        raise UserError(f"model.test_cfg.mode is {mode!r}: use 'whole' or 'slide'")
    for key in ("crop_size", "stride") if mode == "slide" else ():
        value = given.get(key)
        if value is None or isinstance(value, (int, float, str)):
            raise UserError(
                f"model.test_cfg has mode='slide', which needs {key} as two numbers, not {value!r}: as in "
                "mode='slide', crop_size=(512, 512), stride=(341, 341)"
            )


def check_options(values: dict[str, Any], trained: bool) -> None:
    """Raises UserError for what mmengine or mmseg would ignore: an option of IoUMetric, of paramwise_cfg and
    the like, such as a misspelt one, and a scheduler that is never stepped. Not for a run that has begun,
    which does what it did. `trained`: not only used with weights from elsewhere."""
    for key in ("val_evaluator", "test_evaluator"):
        given = values.get(key)
        for one in given if isinstance(given, (list, tuple)) else [given]:
            if isinstance(one, dict) and name_of(one.get("type")) in IOU_METRICS:
                _check_known(f"{key}: IoUMetric", one, IOU_OPTIONS)
    for key, known in READ_BY_KEY.items():
        if isinstance(given := values.get(key), dict):
            _check_known(key, given, known)
    if isinstance(model := values.get("model"), dict) and name_of(model.get("type")) in SEGMENTORS:
        _check_misspelt("model.test_cfg", model.get("test_cfg"), TESTING)
    if not trained:
        return
    _check_schedulers(values.get("train_cfg"), values.get("param_scheduler"))
    optimizer = values.get("optim_wrapper")
    optimizer = optimizer if isinstance(optimizer, dict) else {}
    paramwise = optimizer.get("paramwise_cfg")
    if not isinstance(paramwise, dict):
        return
    if optimizer.get("constructor") in (None, "DefaultOptimWrapperConstructor"):
        _check_known("optim_wrapper.paramwise_cfg", paramwise, PARAMWISE)
    named = paramwise.get("custom_keys")
    for name, one in named.items() if isinstance(named, dict) else ():
        # Any of the optimizer's options is right here, too.
        _check_misspelt(f"optim_wrapper.paramwise_cfg.custom_keys[{name!r}]", one, FACTORS)


def hints(values: dict[str, Any]) -> list[str]:
    """What is allowed, and rarely meant."""
    model = values.get("model")
    given = model.get("data_preprocessor") if isinstance(model, dict) else None
    size = _size(given.get("size")) if isinstance(given, dict) else None
    crops = {_size(crop) for crop in _crops(values.get("train_dataloader"))}
    crop = crops.pop() if len(crops) == 1 else None
    if size is None or crop is None or (size[0] <= crop[0] and size[1] <= crop[1]):
        return []
    return [
        f"model.data_preprocessor.size is {size}, and RandomCrop's crop_size {crop}: what is between them is "
        "trained on as padding"
    ]


def _crops(node: Any) -> Iterator[Any]:
    """The crop_size of each RandomCrop."""
    if isinstance(node, dict) and name_of(node.get("type")) == "RandomCrop":
        yield node.get("crop_size")
    for one in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        yield from _crops(one)


def _size(given: Any) -> tuple[int, int] | None:
    """(height, width); None for what is neither a size nor known."""
    pair = (given, given) if isinstance(given, int) else given
    if not isinstance(pair, (list, tuple)) or [type(one) for one in pair] != [int, int]:
        return None
    return pair[0], pair[1]


def _check_schedulers(loop: Any, schedulers: Any) -> None:
    """Raises UserError for one that counts epochs, as all do by default, where there are none."""
    if not isinstance(loop, dict) or name_of(loop.get("type")) != "IterBasedTrainLoop":
        return
    for one in schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]:
        kind = name_of(one.get("type")) if isinstance(one, dict) else ""
        if not SCHEDULERS.fullmatch(kind) or one.get("convert_to_iter_based"):
            continue
        if one.get("by_epoch", True) is True:
            raise UserError(
                f"param_scheduler: {kind} counts epochs, and an IterBasedTrainLoop has none, so that it "
                "would change nothing: set by_epoch=False"
            )


def _check_known(where: str, given: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(unmarked(given)) - known):
        near = difflib.get_close_matches(unknown[0], known, 1)
        what = f": did you mean {near[0]}?" if near else ", and would ignore it"
        raise UserError(f"{where} has no option {unknown[0]!r}{what}")


def _check_misspelt(where: str, given: Any, known: tuple[str, ...]) -> None:
    """Raises UserError for a key that is probably meant as a known one, where others may be right, too."""
    for key in set(given) - set(known) if isinstance(given, dict) else ():
        if near := difflib.get_close_matches(key, known, 1, 0.8):
            raise UserError(f"{where} has no option {key!r}: did you mean {near[0]}?")
