"""The evaluation's figures: those of mmseg's IoUMetric, whatever the order and the odd cases."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.mmseg.figures import confusion, figures

NAMES = [f"class {number}" for number in range(7)]


def maps(count: int, absent: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        shape = tuple(random.integers(1, 60, 2))
        truth = random.integers(0, absent, shape).astype(np.uint8)
        truth[random.random(shape) < 0.1] = 255
        made.append((truth, random.integers(0, absent, shape).astype(np.int64)))
    return made


def test_the_figures_are_those_of_mmseg() -> None:
    from jobs.mmseg import compat

    compat.prepare()
    import torch
    from mmseg.evaluation import IoUMetric

    samples = maps(20)
    samples.append((np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.int64)))  # nothing counts
    metric = IoUMetric(iou_metrics=["mIoU", "mDice", "mFscore"], beta=2)
    metric.dataset_meta = {"classes": NAMES}
    metric.process(
        {},
        [
            {"pred_sem_seg": {"data": torch.tensor(p)}, "gt_sem_seg": {"data": torch.tensor(t)}}
            for t, p in samples
        ],
    )
    theirs = metric.compute_metrics(metric.results)
    ours = figures(sum(confusion(t, p, 7, 255) for t, p in samples), NAMES, beta=2)
    means = ("mIoU", "mAcc", "aAcc", "mDice", "mFscore", "mPrecision", "mRecall")
    assert {key: round(ours[key], 2) for key in means} == {
        key: pytest.approx(float(theirs[key]), abs=0.011) for key in means
    }
    # Classes 5 and 6 occur nowhere: no figure, and no part in the means.
    assert [one["IoU"] for one in ours["classes"]][5:] == [None, None]


def test_a_figure_by_hand() -> None:
    matrix = confusion(np.array([[0, 0, 1, 255]]), np.array([[0, 1, 1, 1]]), 2, 255)
    assert matrix.tolist() == [[1, 1], [0, 1]]
    found = figures(matrix, ["a", "b"])
    assert (found["mIoU"], found["mAcc"], found["aAcc"]) == (50.0, 75.0, pytest.approx(200 / 3))


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([[0, 1]], [[0]], "shape"),
        ([[0, 21]], [[0, 0]], "truth has labels up to 21"),
        ([[0]], [[9]], "prediction"),
    ],
)
def test_labels_that_are_no_class_are_an_error(truth: list, prediction: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion(np.array(truth), np.array(prediction), 7, 255)
