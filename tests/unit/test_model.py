"""A run's model for evaluating and segmenting: whose weights fit, what it tests on, how images reach it."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.mmseg import compat, model
from jobs.run import checkpoint_files
from jobs.run.directory import Run
from jobs.run.errors import UserError

compat.prepare()

from mmengine.config import Config  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmseg.datasets import PascalVOCDataset  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

from jobs.evaluate.counting import counted  # noqa: E402
from jobs.evaluate.drawing import how_many, pictures_of  # noqa: E402
from jobs.mmseg.images import loaded  # noqa: E402

TINY = Path(__file__).parents[1] / "support" / "configs" / "tiny.py"


@pytest.fixture(scope="module")
def cfg() -> Any:
    return Config.fromfile(str(TINY))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "is not a model checkpoint"),
        ({"state_dict": [1]}, "is not a model checkpoint"),
        ({1: torch.zeros(1)}, "is not a model checkpoint"),
        ({"backbone.x": torch.zeros(1)}, "weights are missing and 1 unknown"),
        ({"state_dict": {"decode_head.conv_seg.bias": torch.zeros(7)}}, "size mismatch for decode_head.conv"),
    ],
)
def test_a_file_with_something_else_is_refused_in_one_line(
    content: Any, said: str, cfg: Any, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=said) as error:
        model.load(cfg, tmp_path / "x.pth", "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is not a checkpoint"),
        (b"no checkpoint", "it is not a checkpoint"),
        (b"root:x:0:0:root:/root:/bin/bash\n", "it is not a checkpoint"),
        (pickle.dumps({"a": 1})[:-3], ""),
        (b"PK\x03\x04" + bytes(99), "it is damaged, or was not copied whole"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.pth cannot be loaded: {said}") as error:
        model.weights_of(tmp_path / "x.pth")
    assert "\n" not in str(error.value)


def test_a_model_of_depth_is_refused(cfg: Any, tmp_path: Path) -> None:
    changed = Config(cfg._cfg_dict.to_dict())
    changed.model.type = "DepthEstimator"
    with pytest.raises(UserError, match="estimates depth"):
        model.load(changed, tmp_path / "x.pth", "cpu")


def test_results_that_mean_nothing_are_told(
    cfg: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of classes in another order, or of weights that are NaN, there were figures without a word."""
    init_default_scope("mmseg")
    names = PascalVOCDataset.METAINFO["classes"]
    weights = {
        f"module._orig_mod.{name}": value for name, value in MODELS.build(cfg.model).state_dict().items()
    }
    same, other = (
        {"dataset_meta": {"classes": names}},
        {"CLASSES": (*names[:2], "bird", "bicycle", *names[4:])},
    )
    for meta in ({}, same, other):
        torch.save({"state_dict": weights, "meta": meta}, tmp_path / "x.pth")
        assert model.load(cfg, tmp_path / "x.pth", "cpu").dataset_meta["classes"] == names
    assert capsys.readouterr().out == (
        f"warning: {tmp_path}/x.pth: it was trained with other classes than the config's test dataset has: "
        "class 2 is bird there, bicycle here\n"
    )
    weights["module._orig_mod.decode_head.conv_seg.bias"][3] = torch.nan
    torch.save(weights, tmp_path / "x.pth")
    model.load(cfg, tmp_path / "x.pth", "cpu")
    assert "1 of its weights are NaN (such as decode_head.conv_seg.bias)" in capsys.readouterr().out


def test_weights_that_changed_on_the_disk_are_refused(tmp_path: Path) -> None:
    """torch reads them without looking at the archive's checksums."""
    file = tmp_path / "x.pth"
    torch.save({"state_dict": {"x": torch.zeros(1000)}}, file)
    assert not checkpoint_files.damage(file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert torch.load(file, weights_only=True)["state_dict"]["x"].any()
    for read in (model.weights_of, lambda path: compat.load_named(str(path))):
        with pytest.raises(UserError, match=r"x\.pth is damaged: Bad CRC-32 .*: copy "):
            read(file)


def test_a_whole_model_is_refused_by_its_name(tmp_path: Path) -> None:
    torch.save({"model": SimpleNamespace()}, tmp_path / "x.pth")
    for read in (model.weights_of, lambda path: compat.load_named(str(path))):
        with pytest.raises(
            UserError, match=r"more than weights \(types\.SimpleNamespace\): save its state_d"
        ):
            read(tmp_path / "x.pth")


def test_what_is_tested_on_is_what_is_validated_on_unless_the_config_says_otherwise(tmp_path: Path) -> None:
    run = Run(tmp_path)
    text = TINY.read_text().replace("test_dataloader = val_dataloader\n", "")
    text = text.replace("test_evaluator = val_evaluator\n", "")
    run.config.write_text(text)
    cfg = model.config(run)
    assert cfg.test_dataloader.dataset.ann_file.endswith("val.txt")
    assert cfg.test_evaluator.type == "IoUMetric"
    run.config.write_text(text + "val_dataloader = None\n")
    with pytest.raises(UserError, match="nothing to test on"):
        model.config(run)


def test_the_test_datasets_own_pipeline_is_used(cfg: Any, tmp_path: Path) -> None:
    """Inline, overridden, with scopes in the names: not what the file calls test_pipeline."""
    changed = Config(cfg._cfg_dict.to_dict())
    changed.pop("test_pipeline")
    inner = changed.test_dataloader.dataset
    inner.pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "mmseg.LoadAnnotations"},
        {"type": "Resize", "scale": (40, 30), "keep_ratio": True},
        {"type": "PackSegInputs"},
    ]
    changed.test_dataloader.dataset = {"type": "RepeatDataset", "times": 1, "dataset": inner}
    # Needs no files of the dataset.
    assert [len(model.meta(changed)[key]) for key in ("classes", "palette")] == [21, 21]
    Image.new("RGB", (80, 60)).save(tmp_path / "x.png")
    read, prepare = model.reading(changed)
    packed = prepare(loaded(read, tmp_path / "x.png"))
    assert packed["inputs"].shape == (3, 30, 40)
    inner.pipeline = [{"type": "LoadImageFromNDArray"}, *inner.pipeline[1:]]
    with pytest.raises(UserError, match="does not begin by reading an image"):
        model.reading(changed)


def test_pictures_of_equal_stems_have_names_of_their_own() -> None:
    paths = ["/d/a/1.png", "/d/b/1.png", "/d/b/2.png"]

    class Dataset:
        def __len__(self) -> int:
            return len(paths)

        def get_data_info(self, index: int) -> dict[str, str]:
            return {"img_path": paths[index]}

    dataset = Dataset()
    assert pictures_of(dataset, ["all"]) == {0: "a_1", 1: "b_1", 2: "2"}
    assert pictures_of(dataset, [], [2, 0]) == {2: "2", 0: "1"}
    # A number is one of the worst, unless it can only be an id.
    assert [how_many([asked], 3) for asked in ("2", "9999", "20080", "all")] == [2, 3, None, None]
    # As an id, a stem means every image that has it.
    assert pictures_of(dataset, ["2", "1"]) == {0: "a_1", 1: "b_1", 2: "2"}
    with pytest.raises(UserError, match="no image 3"):
        pictures_of(dataset, ["2", "3x"])


def test_a_label_that_is_no_class_is_named_with_its_image() -> None:
    sample = SimpleNamespace(metainfo={"img_path": "/d/1.png"})
    truth = np.array([[0, 21]], np.uint8)
    with pytest.raises(UserError, match=r"/d/1\.png: the truth has labels up to 21, .*21 classes"):
        counted(sample, truth, np.zeros((1, 2), np.int64), 21, 255)


class Tables(torch.nn.Linear):
    """As mmpretrain's Swin-v2: saves a table that it has computed, and drops it from what it loads."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.register_buffer("table", torch.ones(1))
        self._register_load_state_dict_pre_hook(
            lambda weights, prefix, *_: weights.pop(f"{prefix}table", None)
        )


def test_what_a_model_computes_itself_is_not_missing() -> None:
    saved = dict(torch.nn.Sequential(Tables()).state_dict())
    fresh = torch.nn.Sequential(Tables())
    assert model.put(fresh, saved) == ([], [])
    assert torch.equal(fresh.state_dict()["0.weight"], saved["0.weight"])
    assert "0.table" in saved
    assert model.put(fresh, {"0.bias": torch.ones(1), "x": torch.ones(1)}) == (["0.weight", "0.table"], ["x"])
