"""The training's metric is mmseg's IoUMetric in all but time, and exact where that one is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from jobs.mmseg import compat

compat.prepare()

from mmengine.config import Config  # noqa: E402
from mmseg.evaluation import IoUMetric  # noqa: E402
from mmseg.registry import METRICS  # noqa: E402

from jobs.mmseg.evaluator import FastIoUMetric, use_fast_metric  # noqa: E402


def computed(kind: type[IoUMetric], samples: list[tuple[np.ndarray, np.ndarray]], **settings: Any) -> Any:
    metric = kind(**settings)
    metric.dataset_meta = {"classes": [f"class {number}" for number in range(6)]}
    for truth, prediction in samples:
        sample = {
            "pred_sem_seg": {"data": torch.from_numpy(prediction)[None]},
            "gt_sem_seg": {"data": torch.from_numpy(truth)[None]},
            "img_path": "x/picture.jpg",
        }
        metric.process({}, [sample])
    return metric.evaluate(len(samples))


def samples(highest: int) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(highest)
    made = []
    for _ in range(12):
        shape = tuple(random.integers(2, 60, 2))
        truth = random.integers(0, highest, shape)
        truth[random.random(shape) < 0.1] = 255
        made.append((truth, random.integers(0, min(highest, 6), shape)))
    return made


# The highest label 7 is no class: mmseg leaves it out of the truth, but counts what was predicted there.
@pytest.mark.parametrize("highest", [1, 4, 6, 8])
@pytest.mark.parametrize("settings", [{}, {"iou_metrics": ["mIoU", "mDice", "mFscore"], "nan_to_num": 0}])
def test_it_computes_what_mmseg_does(highest: int, settings: dict[str, Any]) -> None:
    theirs = computed(IoUMetric, samples(highest), **settings)
    ours = computed(FastIoUMetric, samples(highest), **settings)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=0.0101, nan_ok=True), key


def test_an_image_without_any_truth() -> None:
    nothing = [(np.full((5, 4), 255), np.zeros((5, 4), np.int64)), *samples(6)]
    assert computed(FastIoUMetric, nothing) == computed(FastIoUMetric, samples(6))


def test_predictions_are_still_written_where_asked(tmp_path: Any) -> None:
    computed(FastIoUMetric, samples(4), output_dir=str(tmp_path))
    assert (tmp_path / "picture.png").is_file()


def test_sums_are_exact_where_float32_is_not() -> None:
    """2^24 pixels of one class and then one more, which a float32 sum does not notice."""
    full = np.zeros((4096, 4096), np.uint8)
    one = np.zeros((1, 1), np.uint8)
    parts = [FastIoUMetric.intersect_and_union(*2 * (torch.from_numpy(x),), 6, 255) for x in (full, one)]
    assert sum(part[0][0].item() for part in parts) == 2**24 + 1
    assert (parts[0][0] + parts[1][0])[0].item() == 2**24 + 1


def test_swapping() -> None:
    config = Config(
        {"one": {"type": "IoUMetric"}, "many": [{"type": IoUMetric}, {"type": "CityscapesMetric"}]}
    )
    assert use_fast_metric(config.one) + use_fast_metric(config.many) == 2
    assert config.many[1].type == "CityscapesMetric"
    assert use_fast_metric(None) == 0
    assert type(METRICS.build(config.one)) is FastIoUMetric
