"""The fast transforms give what mmseg's give, bit for bit, and draw the same random numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
import torch

from jobs.engine.session import Session
from jobs.mmseg import compat
from jobs.run import png
from jobs.run.directory import Request, Run

compat.prepare()

from mmcv.transforms import Compose, Pad  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.model import ImgDataPreprocessor  # noqa: E402
from mmseg.datasets.transforms import (  # noqa: E402
    LoadAnnotations,
    PackSegInputs,
    PhotoMetricDistortion,
    RandomCrop,
    RandomFlip,
    Resize,
)
from mmseg.models import SegDataPreProcessor  # noqa: E402
from mmseg.registry import TRANSFORMS  # noqa: E402

from jobs.mmseg import config  # noqa: E402
from jobs.mmseg.transforms import (  # noqa: E402
    FAST,
    FastPhotoMetricDistortion,
    FastRandomCrop,
    LoadAnnotationsFast,
    _CropTest,
    use_fast_transforms,
)


def sample(index: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) and its mask (H, W), both uint8: odd sizes, few and many labels, all ignored, ..."""
    random = np.random.RandomState(index)
    # Not below 2: mmseg itself cannot pack a flipped image of width 1.
    height, width = random.randint(2, 180, 2) if index % 3 else random.randint(60, 75, 2)
    image: np.ndarray = random.randint(0, 256, (height, width, 3), dtype=np.uint8)
    if index % 2:
        image = cv2.GaussianBlur(image, (0, 0), 3)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(random.randint(0, 4)):
        x, y = random.randint(width), random.randint(height)
        size = (int(random.randint(1, 80)), int(random.randint(1, 60)))
        cv2.ellipse(mask, (int(x), int(y)), size, 0, 0, 360, int(random.randint(1, 21)), -1)
        cv2.ellipse(mask, (int(x), int(y)), size, 0, 0, 360, 255, 2)
    match index % 10:
        case 7:
            mask[:] = 255
        case 8:
            mask[random.rand(height, width) < 0.01] = random.randint(256)
        case 9:
            mask = random.randint(0, 256, (height, width), dtype=np.uint8)
    return image, mask


def pipelines(index: int) -> tuple[Compose, Compose]:
    """mmseg's pipeline and the fast one, with arguments that differ from sample to sample."""
    random = np.random.RandomState(index)
    crop = [(64, 64), (33, 97), (2, 3), (500, 40), (64, 63)][index % 5]
    steps: list[dict[str, Any]] = [
        {"type": RandomCrop, "crop_size": crop, "cat_max_ratio": float(random.choice([1.0, 0.75, 0.5, 0.1]))},
        {
            "type": RandomFlip,
            "prob": 0.5,
            "direction": str(random.choice(["horizontal", "vertical", "diagonal"])),
        },
        {"type": PhotoMetricDistortion},
        {"type": Pad, "size": (64, 64) if index % 3 else (97, 33), "pad_val": {"img": 7, "seg": 255}},
        {"type": PackSegInputs},
    ]
    if index % 4 == 0:
        steps[0]["ignore_index"] = [0, -1, 300][index // 4 % 3]
        steps[2].update(brightness_delta=120, contrast_range=(0.1, 4.0), hue_delta=170)
    if index % 4 == 1:
        steps[1].update(prob=[0.4, 0.4], direction=["horizontal", "vertical"])
    fast = [{**step, "type": FAST[step["type"]]} for step in steps]
    return Compose(steps), Compose(fast)


def generator_state() -> Any:
    return np.random.get_state()


def run(pipeline: Compose, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[dict[str, Any], Any]:
    """What the pipeline makes of a sample, and the state in which it leaves numpy's generator."""
    np.random.seed(seed)
    results = {"img": image.copy(), "gt_seg_map": mask.copy(), "seg_fields": ["gt_seg_map"]}
    packed = pipeline({**results, "img_path": "x.jpg", "img_shape": image.shape[:2]})
    return packed, generator_state()[1:3]


def assert_equal_samples(numbers: range) -> None:
    for index in numbers:
        image, mask = sample(index)
        stock, fast = pipelines(index)
        (a, state_a), (b, state_b) = run(stock, image, mask, index), run(fast, image, mask, index)
        assert a["inputs"].dtype == b["inputs"].dtype
        assert torch.equal(a["inputs"], b["inputs"]), index
        assert b["inputs"].is_contiguous()
        truth_a, truth_b = a["data_samples"].gt_sem_seg.data, b["data_samples"].gt_sem_seg.data
        assert truth_a.dtype == truth_b.dtype
        assert torch.equal(truth_a, truth_b), index
        assert a["data_samples"].metainfo == b["data_samples"].metainfo, index
        assert (state_a[0] == state_b[0]).all(), index
        assert state_a[1] == state_b[1], index


def test_1000_samples_are_equal_to_the_last_bit() -> None:
    assert_equal_samples(range(1000))


def test_the_recipe_at_full_size() -> None:
    """512 × 512 crops of images resized by 0.5 to 2, as the recipe does it."""
    for index in range(12):
        random = np.random.RandomState(index)
        image = cv2.resize(random.randint(0, 256, (24, 32, 3), dtype=np.uint8), (500, 375))
        mask = cv2.resize(sample(index * 10 + 1)[1], (500, 375), interpolation=cv2.INTER_NEAREST)
        resize = {"type": "RandomResize", "scale": (2048, 512), "ratio_range": (0.5, 2.0), "keep_ratio": True}
        steps = [
            {"type": RandomCrop, "crop_size": (512, 512), "cat_max_ratio": 0.75},
            {"type": PackSegInputs},
        ]
        steps.insert(1, {"type": PhotoMetricDistortion})
        stock = Compose([resize, *steps])
        fast = Compose([resize, *({**step, "type": FAST[step["type"]]} for step in steps)])
        a, b = run(stock, image, mask, index)[0], run(fast, image, mask, index)[0]
        assert torch.equal(a["inputs"], b["inputs"])
        assert torch.equal(a["data_samples"].gt_sem_seg.data, b["data_samples"].gt_sem_seg.data)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_images_the_fast_path_is_not_made_for(dtype: type) -> None:
    """Floating-point images and wide labels take mmseg's way, with the same result."""
    image, mask = sample(4)
    labels = mask.astype(np.int32) * 1000
    for seed in range(10):
        a, state_a = run(pipelines(5)[0], image.astype(dtype), labels, seed)
        b, state_b = run(pipelines(5)[1], image.astype(dtype), labels, seed)
        assert torch.equal(a["inputs"], b["inputs"])
        assert torch.equal(a["data_samples"].gt_sem_seg.data, b["data_samples"].gt_sem_seg.data)
        assert state_a[1] == state_b[1]


def test_labels_rarer_than_the_probe_are_counted() -> None:
    """One pixel of a second label, off the grid at which the counter first looks."""
    mask = np.zeros((64, 64), np.uint8)
    mask[3, 5] = 9
    image = np.zeros((64, 64, 3), np.uint8)
    for ratio in (4095 / 4096, np.nextafter(4095 / 4096, 1)):
        draws = []
        for kind in (RandomCrop, FastRandomCrop):
            np.random.seed(0)
            crop = kind((64, 64), cat_max_ratio=float(ratio))
            crop.crop_bbox({"img": image, "gt_seg_map": mask})
            draws.append(generator_state()[2])
        assert draws[0] == draws[1]


def test_a_crop_is_tested_as_by_mmseg() -> None:
    draw = np.random.default_rng(0)
    answers = {True: 0, False: 0}
    for index in range(1000):
        shape, kinds = draw.integers(1, 40, 2), int(draw.integers(1, 6))
        labels = draw.choice([0, 1, 2, 7, 20, 254, 255], kinds)
        mask = draw.choice(labels, shape, p=draw.dirichlet(np.full(kinds, 0.4))).astype(np.uint8)
        mask = mask.repeat(1 + index % 9, 0).repeat(1 + index % 9, 1)
        ignored, part = int(draw.choice([255, 0, -1, 300])), float(draw.choice([0.75, 0.5, 1 / 3, 0.1]))
        fast = _CropTest(mask, ignored, part)
        for _ in range(4):
            (top, bottom), (left, right) = (sorted(draw.integers(0, size + 1, 2)) for size in mask.shape)
            crop = mask[top:bottom, left:right]
            found, counts = np.unique(crop, return_counts=True)
            counts = counts[found != ignored]
            expected = len(counts) > 1 and bool(np.max(counts) / np.sum(counts) < part)
            assert fast.is_mixed(crop) is expected, (crop, ignored, part)
            answers[expected] += 1
    assert min(answers.values()) > 300


MASKS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "as prepared": lambda mask, path: path.write_bytes(png.encode_grey(mask)),
    "of a palette": lambda mask, path: with_palette(mask).save(path, "PNG"),
    "filtered": lambda mask, path: cv2.imwrite(str(path), mask, [cv2.IMWRITE_PNG_STRATEGY, 1]),
    "of 16 bits": lambda mask, path: cv2.imwrite(str(path), mask.astype(np.uint16)),
    "of two bits": lambda mask, path: with_palette(mask % 4).save(path, "PNG", bits=2),
    "JPEG": lambda mask, path: PIL.Image.fromarray(mask).save(path, "JPEG"),
}
ASKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {"reduce_zero_label": False, "label_map": None}),
    "no label map": ({}, {"reduce_zero_label": False}),
    "reduced": ({}, {"reduce_zero_label": True, "label_map": None}),
    "not reduced": ({"reduce_zero_label": False}, {"reduce_zero_label": False}),
    "mapped": ({}, {"reduce_zero_label": False, "label_map": {0: 3, 255: 0, 9: 1}}),
    "by cv2": ({"imdecode_backend": "cv2"}, {"reduce_zero_label": False}),
}


def with_palette(mask: np.ndarray) -> PIL.Image.Image:
    image = PIL.Image.fromarray(mask)
    image.putpalette([(3 * level + channel) % 256 for level in range(256) for channel in range(3)])
    return image


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_a_mask_is_loaded_as_by_mmseg(asked: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    options, wanted = asked
    never_another = {name: LoadAnnotationsFast(**options) for name in MASKS}
    one_for_all = LoadAnnotationsFast(**options)
    for index in range(12):
        for name, write in MASKS.items():
            write(sample(index)[1], path := tmp_path / f"{index}.png")
            loaded = []
            for load in (LoadAnnotations(**options), never_another[name], one_for_all):
                results = {"seg_map_path": str(path), "seg_fields": [], **wanted}
                load._load_seg_map(results)
                loaded.append((results, load.reduce_zero_label))
            (stock, state), *fast = loaded
            for results, its_state in fast:
                mask, expected = results.pop("gt_seg_map"), stock["gt_seg_map"]
                assert (mask.dtype, mask.shape, mask.flags.writeable) == (np.uint8, expected.shape, True)
                assert np.array_equal(mask, expected), (name, index)
                assert results == {key: value for key, value in stock.items() if key != "gt_seg_map"}
                assert its_state == state
    assert never_another["as prepared"].inflates


def test_a_prepared_mask_is_not_left_to_mmseg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(LoadAnnotations, "_load_seg_map")
    for index, write in enumerate((MASKS["as prepared"], MASKS["of a palette"])):
        write(np.arange(12, dtype=np.uint8).reshape(3, 4), path := tmp_path / f"{index}.png")
        results: dict[str, Any] = {"seg_map_path": str(path), "seg_fields": [], "reduce_zero_label": False}
        LoadAnnotationsFast()._load_seg_map(results)
        assert results["gt_seg_map"].tolist() == np.arange(12).reshape(3, 4).tolist()


RECIPE = "configs/upernet_r50_voc-aug_512x512_epoch-200.py"
CONFIG = {
    "default_scope": "mmseg",
    "train_dataloader": {
        "batch_size": 2,
        "dataset": {
            "type": "RepeatDataset",
            "dataset": {
                "type": "PascalVOCDataset",
                "pipeline": [
                    {"type": "LoadImageFromFile"},
                    {"type": "mmseg.RandomCrop", "crop_size": (8, 8)},
                    {"type": "RandomChoice", "transforms": [[{"type": "RandomFlip", "prob": 0.5}], []]},
                    {"type": PhotoMetricDistortion},
                    {"type": Resize, "scale": (4, 4)},
                    {"type": "PackSegInputs"},
                ],
            },
        },
    },
    "model": {"type": "RandomCrop"},
}


def test_swapping_reaches_every_pipeline_and_nothing_else() -> None:
    cfg = Config(copy.deepcopy(CONFIG))
    assert use_fast_transforms(cfg.train_dataloader) == 4
    pipeline = cfg.train_dataloader.dataset.dataset.pipeline
    assert [step.type for step in pipeline[:2]] == ["LoadImageFromFile", "FastRandomCrop"]
    assert pipeline[1].crop_size == (8, 8)
    assert pipeline[2].transforms[0][0].type == "FastRandomFlip"
    assert pipeline[3].type == "FastPhotoMetricDistortion"
    assert isinstance(TRANSFORMS.build(pipeline[3]), FastPhotoMetricDistortion)
    assert pipeline[4].type is Resize
    assert pipeline[5].type == "FastPackSegInputs"
    assert cfg.model.type == "RandomCrop"


def test_a_class_of_the_user_under_a_stock_name_stays() -> None:
    stock = TRANSFORMS.get("RandomCrop")
    try:
        TRANSFORMS.register_module(name="RandomCrop", module=type("Mine", (RandomCrop,), {}), force=True)
        cfg = Config(copy.deepcopy(CONFIG))
        assert use_fast_transforms(cfg.train_dataloader) == 3
    finally:
        TRANSFORMS.register_module(name="RandomCrop", module=stock, force=True)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_training_gets_them_unless_told_otherwise(wanted: bool, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.code.symlink_to(Path(__file__).parent.parent.parent)
    settings = {} if wanted else {"baton.fast_transforms": False}
    request = Request(name="x", config=RECIPE, data_root="/data", created="", set=settings)
    session = Session(run, request, rank=0, ranks=1, local_rank=0, local_ranks=1, start=1, job=None)
    prepared = config.prepare(config.resolve(session), session, 8)
    kinds = [step.type for step in prepared.train_dataloader.dataset.dataset.pipeline]
    fast = {"RandomCrop", "RandomFlip", "PhotoMetricDistortion", "Pad", "PackSegInputs"}
    assert {kind.removeprefix("Fast") for kind in kinds if kind.startswith("Fast")} == (
        fast if wanted else set()
    )
    assert not any("Fast" in step.type for step in prepared.test_dataloader.dataset.pipeline)


def test_images_of_any_number_of_channels_are_normalised() -> None:
    """In set B, too, whose SegDataPreProcessor is mmengine's ImgDataPreprocessor."""
    mean, std = [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 1.0, 2.0, 4.0]
    images = torch.arange(5.0 * 2 * 3).reshape(5, 2, 3)
    expected = (images - torch.tensor(mean).view(5, 1, 1)) / torch.tensor(std).view(5, 1, 1)
    for made in (SegDataPreProcessor(mean=mean, std=std), ImgDataPreprocessor(mean, std)):
        assert torch.equal(made({"inputs": [images]})["inputs"][0], expected)
    with pytest.raises(AssertionError, match="1 or 3"):
        ImgDataPreprocessor(mean, std[:4])


def test_what_another_package_means_by_a_name_stays() -> None:
    pipeline = [{"type": "RandomFlip", "_scope_": "mmengine"}, {"type": "RandomFlip"}]
    assert use_fast_transforms(pipeline) == 1
    assert [step["type"] for step in pipeline] == ["RandomFlip", "FastRandomFlip"]
