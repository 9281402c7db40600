"""The fast way from scores to class numbers gives what mmseg's gives."""

from __future__ import annotations

import pytest
import torch

from jobs.mmseg import compat

compat.prepare()

from mmseg.models.segmentors.base import BaseSegmentor  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

from jobs.mmseg import labels  # noqa: E402
from jobs.mmseg.labels import best_class, use_fast_labels  # noqa: E402


@pytest.mark.parametrize("classes", [2, 21, 300])
def test_the_first_of_the_highest(classes: int) -> None:
    torch.manual_seed(classes)
    for shape in ((1, 1), (7, 13), (64, 33)):
        ties = torch.randint(-2, 3, (classes, *shape)).float()
        for scores in (torch.randn(classes, *shape), ties, torch.zeros(classes, *shape), -ties / 0.0):
            found = best_class(scores)
            assert found.dtype == torch.int64
            assert torch.equal(found, scores.argmax(0))


class Model(BaseSegmentor):
    align_corners = False

    def extract_feat(self) -> None: ...
    def encode_decode(self) -> None: ...
    def _forward(self) -> None: ...
    def loss(self) -> None: ...
    def predict(self) -> None: ...


METAS = [
    {"ori_shape": (30, 41)},
    {"ori_shape": (16, 20), "padding_size": [0, 3, 0, 5]},
    {"ori_shape": (9, 50), "img_padding_size": [1, 2, 3, 0]},
    {"ori_shape": (16, 20), "flip": True, "flip_direction": "horizontal"},
]


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("meta", METAS)
def test_results_are_those_of_mmseg(meta: dict, classes: int) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, classes, 16, 20)
    stock, fast = Model(), Model()
    for model in (stock, fast):
        model.decode_head = torch.nn.Identity()
        model.decode_head.threshold = 0.3
    assert use_fast_labels(fast)
    theirs, ours = (
        model.postprocess_result(scores, [SegDataSample(metainfo=dict(meta)) for _ in range(2)])
        for model in (stock, fast)
    )
    for a, b in zip(theirs, ours, strict=True):
        assert a.pred_sem_seg.data.dtype == b.pred_sem_seg.data.dtype
        assert torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data)


def test_a_model_with_its_own_results_is_left_alone() -> None:
    class Own(Model):
        def postprocess_result(self) -> str:
            return "mine"

    model = Own()
    assert not use_fast_labels(model)
    assert model.postprocess_result() == "mine"


@pytest.mark.parametrize("classes", [2, 21, 300])
def test_scores_enlarged_class_by_class_give_the_same_numbers(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = torch.randn(1, classes, 7, 9, generator=torch.Generator().manual_seed(0))
    scores[0, 1, 3, 4] = float("nan")
    at_once = labels.enlarged(scores, (30, 41), False)
    monkeypatch.setattr(labels, "MOST_SCORES", 1)
    one_by_one = labels.enlarged(scores, (30, 41), False)
    assert one_by_one.dtype == at_once.dtype
    assert torch.equal(one_by_one, at_once)
