"""Test-time augmentation of a config that says nothing of it."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.evaluate import augmentation
from jobs.mmseg import compat
from jobs.run.errors import UserError
from tests.unit.made_runs import made_run

compat.prepare()

from mmengine.structures import PixelData  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

LOAD = {"type": "LoadImageFromFile"}
TRUTH = {"type": "mmseg.LoadAnnotations", "reduce_zero_label": True}
PACK = {"type": "PackSegInputs"}


def scales(pipeline: list[dict[str, Any]]) -> list[Any]:
    """What the augmented pipeline resizes to."""
    choices = augmentation.augmented(pipeline)[-1]["transforms"][0]
    return [one.get("scale") or one["scale_factor"] for one in choices]


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        ({"scale": (2048, 512), "keep_ratio": True}, (1024, 256)),
        ({"scale": 100}, (50, 50)),
        ({"scale_factor": 3.0}, 1.5),
        ({"scale_factor": (2.0, 1.0)}, (1.0, 0.5)),
    ],
)
def test_the_sizes_are_those_of_the_test(resize: dict[str, Any], expected: Any) -> None:
    found = scales([LOAD, {"type": "Resize"} | resize, TRUTH, PACK])
    assert len(found) == len(augmentation.RATIOS)
    assert found[0] == expected


def test_without_a_resize_they_are_those_of_the_images() -> None:
    assert scales([LOAD, TRUTH, PACK]) == list(augmentation.RATIOS)


def test_the_annotation_comes_after_the_flips_and_the_rest_stays() -> None:
    normal = {"type": "Mine"}
    pack = PACK | {"meta_keys": ("img_path", "ori_shape")}
    first, tta = augmentation.augmented([LOAD, TRUTH, {"type": "Resize", "scale": (8, 8)}, normal, pack])
    assert first == LOAD
    assert [[one["type"] for one in choices] for choices in tta["transforms"]] == [
        ["Resize"] * 6, ["RandomFlip"] * 2, ["mmseg.LoadAnnotations"], ["Mine"], ["PackSegInputs"],
    ]  # fmt: skip
    assert tta["transforms"][2] == [TRUTH]
    assert tta["transforms"][4][0]["meta_keys"] == ("img_path", "ori_shape", "flip", "flip_direction")


def test_one_output_is_not_put_through_a_sigmoid_twice() -> None:
    """Averaged as probabilities: of 0.2 and 0.5, below the threshold; of 0.5 and 0.9, above it."""

    class Model(torch.nn.Module):
        out_channels, dataset_meta = 1, {"classes": ("no", "yes")}
        decode_head = types.SimpleNamespace(threshold=0.4)

        def test_step(self) -> None: ...

    def of(*probabilities: float) -> SegDataSample:
        return SegDataSample(
            seg_logits=PixelData(data=torch.tensor([[probabilities]])), metainfo={"img_path": "a.jpg"}
        )

    built = augmentation.wrapped({"tta_model": {"type": "SegTTAModel"}}, Model())
    (merged,) = built.merge_preds([[of(0.2, 0.5, 0.0, 1.0), of(0.5, 0.9, 0.0, 1.0)]])
    assert merged.pred_sem_seg.data.flatten().tolist() == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"type": "TestTimeAug", "transforms": []}], "already has a TestTimeAug"),
        ([{"type": "Resize", "scale": 8}, {"type": "Resize", "scale": 4}], "several Resize"),
    ],
)
def test_what_cannot_be_augmented_is_said(steps: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        augmentation.augmented([LOAD, *steps, PACK])


def test_each_dataset_of_several_is_augmented() -> None:
    both: list[dict[str, Any]] = [{"type": "X", "pipeline": [LOAD, TRUTH, PACK]} for _ in range(2)]
    one, two = both
    cfg = _Config(test_dataloader=_Config(dataset={"type": "ConcatDataset", "datasets": both}))
    assert augmentation.use(cfg) == "6 scales, flipped"
    assert [found["pipeline"][-1]["type"] for found in both] == ["TestTimeAug"] * 2
    assert one["pipeline"][-1] is not two["pipeline"][-1]
    cfg["tta_pipeline"] = [LOAD]
    assert augmentation.use(cfg) == "the config's"
    assert two["pipeline"] == [LOAD]


class _Config(dict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        return self[name]


@pytest.mark.parametrize(("augmented", "mark"), [("the config's", " (tta)"), (None, "")])
def test_a_notification_says_that_it_was_augmented(
    augmented: str | None, mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.evaluate import __main__ as evaluate

    said: list[tuple[object, ...]] = []
    for place, name in ((evaluate.results, "show"), (evaluate.report, "write"), (evaluate.tracking, "once")):
        monkeypatch.setattr(place, name, lambda *_: None)
    monkeypatch.setattr(evaluate.notify, "about", lambda *words: said.append(words[1:]))
    figures = {"mIoU": 82.25, "asked": ["mIoU"], "checkpoint": "epoch_1.pth", "seconds": 1.0}
    evaluate.tell(made_run(tmp_path / "run"), "1", figures | {"augmented": augmented}, tmp_path)
    assert said == [("evaluated", f"mIoU 82.25{mark} of epoch_1.pth")]
