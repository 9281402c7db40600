"""What a config's metrics compute is known before the first validation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jobs.catalog import supported
from jobs.mmseg import compat
from jobs.run.errors import UserError

compat.prepare()

IOU = {"type": "IoUMetric", "iou_metrics": ["mDice", "mFscore"]}


def config(best: str, evaluator: Any) -> dict[str, Any]:
    return {"val_evaluator": evaluator, "default_hooks": {"checkpoint": {"save_best": best}}}


@pytest.mark.parametrize(
    ("best", "evaluator"),
    [
        ("mDice", IOU), ("mPrecision", [IOU]), ("aAcc", IOU), ("auto", IOU), ("mIoU", {"type": "IoUMetric"}),
        ("a/mDice", IOU | {"prefix": "a"}), ("mDice", IOU | {"prefix": "a"}), ("x", {"type": "Mine"}),
        ("x", None),
    ],
)  # fmt: skip
def test_the_best_by_what_is_computed(best: str, evaluator: Any) -> None:
    supported.check(config(best, evaluator))


@pytest.mark.parametrize("best", ["mIoU", "mdice", "loss"])
def test_the_best_by_what_nobody_computes_is_refused(best: str) -> None:
    with pytest.raises(UserError, match=f"save_best is '{best}'.* it has aAcc, mDice, mAcc, mFscore"):
        supported.check(config(best, IOU))


def test_an_unknown_figure_is_refused() -> None:
    with pytest.raises(UserError, match="iou_metrics has 'mdice': IoUMetric knows mIoU, mDice, mFscore"):
        supported.check(config("aAcc", IOU | {"iou_metrics": ["mdice"]}))


def test_what_is_not_counted_here_is_left_to_the_metric_itself() -> None:
    from jobs.evaluate.asked import ignored, wanted
    from jobs.run.metrics import EVALUATED, FIGURES

    mine = {"type": "Mine", "ignore_index": 7}
    another = {"type": "IoUMetric", "ignore_index": 0, "prefix": "all"}
    cfg = SimpleNamespace(test_evaluator=[mine, IOU | {"beta": 2, "prefix": "a"}, another])
    asked, others, beta = wanted(cfg)
    assert asked == [*FIGURES]
    assert (others, beta) == ([mine, another], 2.0)
    assert ignored(cfg) == 255
    assert ignored(SimpleNamespace(test_evaluator=another)) == 0
    best = {"checkpoint": {"save_best": ["val/mDice"]}}
    plain = SimpleNamespace(test_evaluator={"type": "IoUMetric"}, default_hooks=best)
    assert wanted(plain)[0] == [*EVALUATED, "mDice"], "what the run goes by is told"


@pytest.mark.parametrize("stop", [False, True])
def test_a_loss_that_is_no_number_is_told_once_and_stops_if_asked(stop: bool) -> None:
    from jobs.mmseg.metrics import Metrics

    told: list[Any] = []
    session: Any = SimpleNamespace(report=lambda event, **fields: told.append((event, fields)))
    metrics = Metrics(session, None, 10, stop_at_nan=stop)
    buffer = SimpleNamespace(current=lambda: 0.5)
    metrics.runner = SimpleNamespace(message_hub=SimpleNamespace(log_scalars={"train/loss": buffer}))
    metrics.watch_loss(1)
    assert told == []
    buffer.current = lambda: float("nan")
    if stop:
        with pytest.raises(UserError, match="the loss is nan at step 2"):
            metrics.watch_loss(2)
    else:
        metrics.watch_loss(2)
        metrics.watch_loss(3)
    assert told == [("not_finite", {"step": 2, "loss": "nan"})]
