"""The evaluation's figures: those of mmseg's IoUMetric, whatever the order and the odd cases."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.evaluate import per_image
from jobs.mmseg.figures import confusion, figures, near_boundaries
from jobs.run import counts

NAMES = [f"class {number}" for number in range(7)]


def maps(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        shape = tuple(random.integers(1, 60, 2))
        truth = random.integers(0, 5, shape).astype(np.uint8)
        truth[random.random(shape) < 0.1] = 255
        made.append((truth, random.integers(0, 5, shape).astype(np.int64)))
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
    ours = figures(np.sum([confusion(t, p, 7, 255) for t, p in samples], axis=0), NAMES, beta=2)
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


def test_frequency_weighted_iou_by_hand() -> None:
    matrix = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    # IoU 6/9 and 3/6; shares 8/12 and 4/12.
    assert figures(matrix, NAMES[:3])["fwIoU"] == pytest.approx(100 * (8 / 12 * 6 / 9 + 4 / 12 * 3 / 6))


def test_the_trimap_is_what_lies_within_its_width_of_a_boundary() -> None:
    truth = np.zeros((60, 80), np.int64)  # a diagonal of 100: two pixels to each side
    truth[:, 40:] = 1
    near = near_boundaries(truth)
    assert sorted(set(np.nonzero(near)[1])) == [38, 39, 40, 41]
    assert near[:, 38:42].all(), "the image's edge is no boundary, and takes nothing away"
    truth[30, 10] = 255  # the ignored label has boundaries too, as VOC paints it along them
    assert near_boundaries(truth)[28:33, 8:13].all()
    assert near_boundaries(truth).sum() == 4 * 60 + 25
    assert not near_boundaries(np.full((60, 80), 300)).any()


def counted(images: int, skill: float) -> np.ndarray:
    """The counts of made images, some harder than others."""
    random, each = np.random.default_rng(3), per_image.PerImage()
    for number in range(images):
        truth = random.integers(0, 4, 300)
        wrong = random.random(300) > skill + random.uniform(-0.2, 0.1)
        prediction = np.where(wrong, random.integers(0, 4, 300), truth)
        matrix, near = (confusion(truth[:end], prediction[:end], 5, 255) for end in (300, 90))
        each.add(number, matrix, near)
    return per_image.joined([each.tobytes()], images, 5)


def test_intervals_are_those_of_the_bootstrap() -> None:
    """Percentiles over drawn images, by the plain way: add up the drawn images, compute, sort."""
    many = counted(120, 0.8)
    matrix_free = many.sum(0, dtype=np.int64)
    base = {"classes": [{"name": name} for name in NAMES[:5]]}
    found = per_image.completed(base, many, 1.0)
    measured = counts.rates(*matrix_free[:3])["IoU"]
    random, plain = np.random.default_rng(7), []
    for _ in range(2000):
        drawn = many[random.integers(0, 120, 120)].sum(0, dtype=np.int64)
        plain.append(np.nanmean(counts.rates(*drawn[:3])["IoU"]))
    low, high = found["intervals"]["mIoU"]
    assert low < np.nanmean(measured) < high
    assert [low, high] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.25)
    assert found == per_image.completed(base, many, 1.0), "the draws are seeded"
    wider = per_image.completed(base, counted(12, 0.8), 1.0)["intervals"]["mIoU"]
    assert wider[1] - wider[0] > 2 * (high - low)
    assert found["classes"][4]["intervals"]["IoU"] is None, "a class that is nowhere"
    near = found["classes"][0]["intervals"]
    assert near["BoundaryIoU"][1] - near["BoundaryIoU"][0] > near["IoU"][1] - near["IoU"][0]


def test_one_draw_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    many = counted(50, 0.7)[:, 0]
    (whole,) = counts.resampled([many], np.random.default_rng(0))
    monkeypatch.setattr(counts, "_AT_ONCE", 50 * 300)
    (pieces,) = counts.resampled([many], np.random.default_rng(0))
    assert (whole == pieces).all()
    assert (whole[0] == many.sum(0)).all()
    assert whole.shape == (counts.RESAMPLES + 1, 5)


def test_the_worst_image_has_the_lowest_iou_over_the_classes_that_it_has() -> None:
    truth = np.array([[0, 0, 1, 1]])
    each = per_image.PerImage()
    each.add(4, *2 * [confusion(np.full((1, 4), 255), truth, 5, 255)])  # nothing counts
    for number, prediction in enumerate(([0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0])):
        each.add(number, *2 * [confusion(truth, np.array([prediction]), 5, 255)])
    order, scores = per_image.worst_first(per_image.joined([each.tobytes()], 5, 5))
    assert order == [1, 3, 2, 0, 4]
    assert scores[2] == (pytest.approx(100 * (2 / 3 + 1 / 2) / 2), 75.0)
