"""Checks of what a config's author wrote, for mistakes that mmengine or mmseg would report late, unclearly or
never. The input is plain dicts, as in supported.py."""

from __future__ import annotations

import difflib
from typing import Any

from jobs.catalog.supported import IOU_METRICS, IOU_OPTIONS, name_of
from jobs.run.errors import UserError

SEGMENTORS = ("EncoderDecoder", "CascadeEncoderDecoder", "MultimodalEncoderDecoder")
"""Types of mmseg that follow `model.test_cfg`."""


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


def check_options(values: dict[str, Any]) -> None:
    """Raises UserError for an option that IoUMetric would ignore, such as a misspelt one. Not for a run that
    has begun, which does what it did."""
    for key in ("val_evaluator", "test_evaluator"):
        given = values.get(key)
        for one in given if isinstance(given, (list, tuple)) else [given]:
            if not isinstance(one, dict) or name_of(one.get("type")) not in IOU_METRICS:
                continue
            if unknown := sorted(set(one) - IOU_OPTIONS):
                near = difflib.get_close_matches(unknown[0], IOU_OPTIONS, 1)
                what = f": did you mean {near[0]}?" if near else ", and would ignore it"
                raise UserError(f"{key}: IoUMetric has no option {unknown[0]!r}{what}")
