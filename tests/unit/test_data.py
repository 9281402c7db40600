"""Every error of the data names its file; what a first start looks at, on data with the usual mistakes."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.mmseg import compat
from jobs.run.errors import UserError

compat.prepare()

from mmengine.registry import MODELS, DefaultScope, init_default_scope  # noqa: E402
from mmseg.datasets import BaseSegDataset  # noqa: E402
from mmseg.utils import register_all_modules  # noqa: E402

from jobs.mmseg import data, sampling  # noqa: E402

Change = Callable[[np.ndarray, int], np.ndarray | None]
SCENE = np.repeat(np.arange(4, dtype=np.uint8).clip(0, 2), 16)[None].repeat(48, 0)
LOAD = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]


@pytest.fixture(scope="module", autouse=True)
def scope() -> None:
    register_all_modules(init_default_scope=False)
    if DefaultScope.get_current_instance() is None:
        init_default_scope("mmseg")


def made(root: Path, mask: Change = lambda m, _: m, suffix: str = ".png") -> dict[str, Any]:
    """Pictures of 64 × 48 with masks 0, 1, 2, changed by `mask`; a dataset's description of them."""
    for folder in ("img", "ann"):
        (root / folder).mkdir(parents=True)
    for number in range(4):
        Image.fromarray(SCENE * 80).convert("RGB").save(root / "img" / f"{number}{suffix}")
        if (changed := mask(SCENE, number)) is not None:
            Image.fromarray(changed).save(root / "ann" / f"{number}.png")
    return {
        "type": "BaseSegDataset",
        "data_root": str(root),
        "data_prefix": {"img_path": "img", "seg_map_path": "ann"},
        "img_suffix": ".png",
        "metainfo": {"classes": ("a", "b", "c"), "palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2]]},
        "pipeline": [*LOAD, {"type": "PackSegInputs"}],
    }


def looked(description: dict[str, Any], classes: int = 3) -> str:
    """What a look says is wrong; "" for nothing."""
    try:
        for leaf in data.leaves(sampling.SeededDataset(description)):
            data.look_at(leaf, "train_dataloader", classes, 255)
    except data.DataError as error:
        return str(error)
    return ""


def one_label_7(mask: np.ndarray, number: int) -> np.ndarray:
    return np.where((mask == 2) & (number == 3), 7, mask).astype(np.uint8)


def wide(mask: np.ndarray, label: int) -> np.ndarray:
    return np.where(mask == 2, np.uint16(label), mask.astype(np.uint16))


WRONG: dict[str, tuple[Change, int, str]] = {
    # mmseg would make 44 of it, or 1, which is a class.
    "label of 16 bits": (lambda m, _: wide(m, 300), 3, r"ann/\d\.png.*label 300 of a mask of uint16"),
    "label that wraps": (lambda m, _: wide(m, 257), 3, r"ann/\d\.png.*label 257 of a mask of uint16"),
    "label": (one_label_7, 3, r"ann/3\.png has label 7, .*0 to 2"),
    "255 for one": (
        lambda m, _: np.where(m > 0, 255, 0).astype(np.uint8), 2, r"all 4 masks .* 0 and 255, in .*/ann"
    ),
    "colours": (lambda m, _: np.dstack([m, m, m]), 3, r"ann/\d\.png is a colour image \(3 channels\)"),
    "missing": (
        lambda m, n: None if n == 2 else m, 3,
        r"the mask \S*/ann/2\.png of \S*/img/2\.png is not there \(1 of 4",
    ),
    "size": (
        lambda m, n: m[:, :50] if n == 1 else m, 3,
        r"img/1\.png has 64 × 48 pixels and its mask \S*1\.png has 50 × 48",
    ),
    "turned": (lambda m, n: np.rot90(m) if n == 1 else m, 3, r"does its EXIF turn the image"),
    "ignored": (lambda m, _: np.full_like(m, 255), 3, r"nothing but 255, which is ignored"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_named_with_its_file(kind: str, tmp_path: Path) -> None:
    mask, classes, message = WRONG[kind]
    assert (found := looked(made(tmp_path, mask), classes))
    assert re.search(message, found), found
    assert "\n" not in found


def test_nothing_is_wrong_with_sound_data(tmp_path: Path) -> None:
    assert looked(made(tmp_path / "a")) == ""
    # One class of two that occurs nowhere, without an ignored label: a rare one.
    assert looked(made(tmp_path / "b", lambda m, _: m * 0), 2) == ""
    assert looked(made(tmp_path / "c", WRONG["255 for one"][0]), 1) == ""


def test_a_model_with_more_classes_than_it_is_validated_on_is_refused_before_it_trains(
    tmp_path: Path,
) -> None:
    (leaf,) = data.leaves(sampling.SeededDataset(made(tmp_path)))
    data.check_classes(leaf, "val_dataloader", 3)
    data.check_classes(leaf, "val_dataloader", 2)  # the masks tell
    with pytest.raises(data.DataError, match="the decode_head has num_classes=9, the dataset 3 classes"):
        data.check_classes(leaf, "val_dataloader", 9)
    leaf.pipeline.transforms.append(SimpleNamespace())  # what the users' own makes of the labels is theirs
    data.check_classes(leaf, "val_dataloader", 9)


def test_masks_of_16_bits_are_read_if_their_labels_fit_and_refused_at_every_sample_if_not(
    tmp_path: Path,
) -> None:
    fits = made(tmp_path / "fits", lambda m, n: wide(m, 65535 if n else 2))
    assert looked(fits) == ""
    labels = [BaseSegDataset(**rest(fits))[n]["data_samples"].gt_sem_seg.data.unique() for n in (0, 1)]
    assert [one.tolist() for one in labels] == [[0, 1, 2], [0, 1, 255]]
    wraps = sampling.SeededDataset(made(tmp_path / "wraps", lambda m, n: wide(m, 257 if n == 3 else 2)))
    with pytest.raises(data.DataError, match=r"img/3\.png \(with the mask .*ann/3\.png\).*label 257"):
        data.sample(wraps, 3)


def rest(description: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in description.items() if key != "type"}


def test_labels_of_a_transform_of_the_users_are_the_users(tmp_path: Path) -> None:
    from mmseg.registry import TRANSFORMS

    @TRANSFORMS.register_module(force=True)
    class Halve:
        def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
            results["gt_seg_map"] = results["gt_seg_map"] // 127
            return results

    description = made(tmp_path, lambda m, _: np.where(m > 0, 254, 0).astype(np.uint8))
    assert "has label 254" in looked(description)
    description["pipeline"] = [*LOAD, {"type": "Halve"}, {"type": "PackSegInputs"}]
    assert looked(description) == ""


def test_wrappers_are_looked_through(tmp_path: Path) -> None:
    good, bad = made(tmp_path / "good"), made(tmp_path / "bad", WRONG["label"][0])
    both = {
        "type": "ConcatDataset",
        "datasets": [good, {"type": "RepeatDataset", "times": 2, "dataset": bad}],
    }
    assert "bad/ann/3.png has label 7" in looked(both)


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_empty_dataset_says_what_lies_there_instead(wrapped: bool, tmp_path: Path) -> None:
    description = made(tmp_path, suffix=".PNG")
    if wrapped:
        description = {"type": "RepeatDataset", "times": 2, "dataset": description}
    with pytest.raises(
        data.DataError, match=r"img ends in '.png' \(there are 4 × .PNG\): set img_suffix='.PNG'"
    ):
        sampling.SeededDataset(description)


def test_an_empty_list_is_named(tmp_path: Path) -> None:
    description = made(tmp_path)
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(data.DataError, match=r"none\.txt names none"):
        sampling.SeededDataset(description | {"ann_file": "none.txt"})


def test_a_list_with_a_byte_order_mark_or_an_empty_line_is_told(tmp_path: Path) -> None:
    description = made(tmp_path) | {"ann_file": "names.txt"}
    for content, message in (
        (b"\xef\xbb\xbf0\n1\n", r"train_dataloader: \S*names\.txt begins with a byte order mark"),
        (b"0\n\n1\n", r"line 2 of \S*names\.txt is empty"),
        (b"0\n9\n8\n", r"the image \S*/img/9\.png is not there \(2 of 3 are like this\)"),
    ):
        (tmp_path / "names.txt").write_bytes(content)
        assert re.search(message, looked(description))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_whichever_process_reads_it(workers: int, tmp_path: Path) -> None:
    dataset: Any = sampling.SeededDataset(made(tmp_path))
    (tmp_path / "img" / "2.png").write_bytes(b"<html>")
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=workers, collate_fn=lambda x: x
    )
    with pytest.raises(data.DataError) as caught:
        list(loader)
    assert f"{tmp_path}/img/2.png (with the mask {tmp_path}/ann/2.png) cannot be loaded: " in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    traceback.clear_frames(caught.tb)  # they hold the worker; one that goes by the collector takes 5 s


def test_a_machine_that_cannot_read_is_no_fault_of_the_data() -> None:
    class Stale:
        def get_data_info(self, index: int) -> dict[str, Any]:
            return {"img_path": f"{index}.jpg"}

        def __getitem__(self, index: int) -> Any:
            raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(data.LoadingError, match=r"7\.jpg cannot be loaded: OSError: .*Stale file"):
        data.sample(Stale(), 7)


def head(kind: str, **settings: Any) -> Any:
    common = {"in_channels": 8, "channels": 8, "num_classes": 3, "norm_cfg": {"type": "BN"}}
    return MODELS.build({"type": kind, **common, **settings})


def plan(samples: int, batch: int, ranks: int = 1, drop_last: bool = False) -> Any:
    rounds = sampling.rounds_for(batch, ranks, batch)
    sampler = sampling.ExactSampler(range(samples), 0, batch, 0, ranks, rounds, drop_last=drop_last)
    return SimpleNamespace(plan=sampler.plan, batches=SimpleNamespace(sampler=sampler))


@pytest.mark.parametrize(
    ("loop", "wrong"),
    [
        (plan(9, 4), True), (plan(10, 4), False), (plan(9, 4, drop_last=True), False),
        (plan(8, 1), True), (plan(8, 4, ranks=4), True), (plan(10, 4, ranks=2), True),
    ],
)  # fmt: skip
def test_a_single_sample_is_too_few_behind_a_pooling(loop: Any, wrong: bool) -> None:
    runner = SimpleNamespace(model=torch.nn.ModuleDict({"decode_head": head("PSPHead")}), train_loop=loop)
    if wrong:
        with pytest.raises(data.DataError, match=r"batch of one sample gives decode_head.psp_modules.0"):
            data.check_batches(runner)
    else:
        data.check_batches(runner)
    data.check_batches(
        SimpleNamespace(model=head("FCNHead", num_convs=1, concat_input=False), train_loop=loop)
    )


def test_dropping_the_only_batch_is_said() -> None:
    with pytest.raises(UserError, match=r"2 image\(s\) do not fill a batch of 4"):
        plan(2, 4, drop_last=True)


def test_an_annotation_that_was_resized_is_named_before_and_after(tmp_path: Path) -> None:
    from jobs.mmseg.evaluator import FastIoUMetric

    description = made(tmp_path) | {"test_mode": True}
    resize = {"type": "Resize", "scale": (32, 24), "keep_ratio": True}
    for pipeline, wrong in (([LOAD[0], resize, LOAD[1]], False), ([*LOAD, resize], True)):
        pipeline = [*pipeline, {"type": "PackSegInputs"}]
        dataset = sampling.SeededDataset(description | {"pipeline": pipeline})
        runner: Any = SimpleNamespace(
            val_loop=SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset)),
            model=head("FCNHead", num_convs=1, concat_input=False),
        )
        if wrong:
            with pytest.raises(
                data.DataError, match=r"0\.png has 64 × 48 pixels and its annotation 32 × 24: .*Resize"
            ):
                data.check_order(runner)
        else:
            data.check_order(runner)
    metric = FastIoUMetric()
    metric.dataset_meta = {"classes": ["a"]}
    sample = {
        "img_path": "x.jpg",
        "gt_sem_seg": {"data": torch.zeros(1, 24, 32)},
        "pred_sem_seg": {"data": torch.zeros(1, 48, 64)},
    }
    with pytest.raises(data.DataError, match=r"x\.jpg has 64 × 48 pixels and its annotation 32 × 24"):
        metric.process({}, [sample])


def test_a_failed_step_is_blamed_on_its_own_images(tmp_path: Path) -> None:
    dataset = sampling.SeededDataset(made(tmp_path, WRONG["label"][0]))
    runner = SimpleNamespace(
        model=SimpleNamespace(decode_head=SimpleNamespace(num_classes=3, ignore_index=255)),
        train_loop=SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset)),
    )
    batches = [{"data_samples": [dataset[index]["data_samples"]]} for index in range(4)]
    assert data.blame(runner, batches[:3]) is None
    assert "3.png has label 7" in str(data.blame(runner, batches))
    assert data.blame(runner, [{"anything": 1}]) is None
    assert isinstance(dataset.dataset, BaseSegDataset)
