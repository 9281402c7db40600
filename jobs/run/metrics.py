"""A figure and its metric. A run's main metric is its own choice; the names known here are listed below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from jobs.run.records import number

USUAL = "mIoU"
"""The default main metric. Every evaluation reports it."""
EVALUATED = (USUAL, "mAcc", "aAcc", "fwIoU", "mBoundaryIoU")
"""Metrics that every evaluation reports."""
FIGURES = (*EVALUATED, "mDice", "mFscore", "mPrecision", "mRecall")
"""Metrics that are counted from pixels, in percent."""
AUGMENTED = "tta"
"""Marks an evaluation with test-time augmentation, besides its checkpoint's name."""
LESS_IS_BETTER = ("loss",)
"""Parts of metric names for which less is better, unless specified otherwise."""


class Figure(msgspec.Struct, frozen=True):
    metric: str
    value: float
    step: int | None = None
    less: bool = False
    """Whether less is better."""
    of: str = ""
    """What was evaluated, if not the run's best checkpoint without augmentation: `epoch_50`, `tta`."""

    def __str__(self) -> str:
        return shown(self.metric, self.value) + (f" ({self.of})" if self.of else "")

    def beats(self, other: Figure | None) -> bool:
        """Whether it is better than `other`; always, if that is None or of another metric."""
        if other is None or other.metric != self.metric:
            return True
        return self.value < other.value if self.less else self.value > other.value


def shown(metric: str, value: float) -> str:
    """The value without its name: two decimals for percentages, four significant digits for anything else."""
    return f"{value:.2f}" if metric in FIGURES else f"{value:.4g}"


def less_is_better(metric: str) -> bool:
    return any(word in metric for word in LESS_IS_BETTER)


def evaluated(told: Mapping[str, Any], best: Figure | None, of: str = "") -> Figure | None:
    """An evaluation's main figure: the metric of the run's `best` if it was reported, else the default one;
    None if that is undefined. An evaluator's prefixes (`prefix/mIoU`) are ignored, as in validations."""
    told = {name.rpartition("/")[2]: value for name, value in told.items()} | dict(told)
    same = best if best is not None and best.metric in told else None
    metric = same.metric if same else USUAL
    value = number(told.get(metric))
    return None if value is None else Figure(metric, float(value), less=same is not None and same.less, of=of)
