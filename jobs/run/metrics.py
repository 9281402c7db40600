"""A figure with the name of its metric: a run says which it goes by. Here stand the names that are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from jobs.run.records import number

USUAL = "mIoU"
"""The metric of a run that names none. Every evaluation tells it."""
EVALUATED = (USUAL, "mAcc", "aAcc", "fwIoU", "mBoundaryIoU")
"""What every evaluation tells."""
FIGURES = (*EVALUATED, "mDice", "mFscore", "mPrecision", "mRecall")
"""Whatever is counted from pixels, in percent."""
AUGMENTED = "tta"
"""What an evaluation is of, beside its checkpoint, if it was with test-time augmentation."""
LESS_IS_BETTER = ("loss",)
"""In the names of metrics of which less is better, unless it is said otherwise."""


class Figure(msgspec.Struct, frozen=True):
    metric: str
    value: float
    step: int | None = None
    less: bool = False
    """Whether less of it is better."""
    of: str = ""
    """What was evaluated, where that is not the run's best checkpoint as it is: `epoch_50`, `tta`."""

    def __str__(self) -> str:
        return shown(self.metric, self.value) + (f" ({self.of})" if self.of else "")

    def beats(self, other: Figure | None) -> bool:
        """Whether it is the better one; of another metric it takes the place."""
        if other is None or other.metric != self.metric:
            return True
        return self.value < other.value if self.less else self.value > other.value


def shown(metric: str, value: float) -> str:
    """The value without its name: two decimals of what is in percent, four digits of what may be anything."""
    return f"{value:.2f}" if metric in FIGURES else f"{value:.4g}"


def less_is_better(metric: str) -> bool:
    return any(word in metric for word in LESS_IS_BETTER)


def evaluated(told: Mapping[str, Any], best: Figure | None, of: str = "") -> Figure | None:
    """What an evaluation is shown by: the metric of the run's `best`, where it was told, or the usual one;
    None where that is not defined. A validation's names are without what an evaluator puts before them."""
    told = {name.rpartition("/")[2]: value for name, value in told.items()} | dict(told)
    same = best if best is not None and best.metric in told else None
    metric = same.metric if same else USUAL
    value = number(told.get(metric))
    return None if value is None else Figure(metric, float(value), less=same is not None and same.less, of=of)
