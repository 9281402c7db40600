"""Pretrained weights: from a placed file, and every one of the backbone's."""

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.catalog import pretrained
from jobs.mmseg import backbone_weights, compat
from jobs.run.errors import UserError
from tests.support import tiny

compat.prepare()

from mmengine.model import BaseModule, ModuleList  # noqa: E402
from mmseg.models.backbones import MobileNetV2, ResNet, ResNetV1c, STDCNet, VisionTransformer  # noqa: E402

REFERENCE = {"type": "Pretrained", "checkpoint": "torchvision://resnet18"}
SMALL = {"depth": 18, "base_channels": 8, "norm_cfg": {"type": "BN"}}


def weights_of(kind: type, path: Path, **more: object) -> dict[str, torch.Tensor]:
    """Writes weights such as a classifier's to `path`; returns them."""
    torch.manual_seed(1)
    state = {key: torch.rand_like(value.float()) for key, value in kind(**SMALL, **more).state_dict().items()}
    torch.save(state | {"fc.weight": torch.ones(1)}, path)
    return state


def backbone(kind: type, path: Path, **more: object) -> Any:
    return kind(**SMALL, **more, init_cfg={"type": "Pretrained", "checkpoint": str(path)})


@pytest.mark.parametrize(("kind", "more"), [(ResNet, {}), (ResNetV1c, {"stem_channels": 8})])
def test_every_weight_comes_from_the_file(kind: type, more: dict, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = weights_of(kind, path, **more)
    model = backbone(kind, path, **more)
    with backbone_weights.every_weight_loaded(model):
        model.init_weights()
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state[name]), name


def test_a_random_stem_is_impossible(tmp_path: Path) -> None:
    """torchvision's resnet, by its stem, in a ResNetV1c: mmengine only warns."""
    path = tmp_path / "resnet.pth"
    weights_of(ResNet, path)
    model = backbone(ResNetV1c, path, stem_channels=8)
    with pytest.raises(UserError, match=r"stem\.0\.weight.*conv1\.weight"):  # noqa: SIM117
        with backbone_weights.every_weight_loaded(model):
            model.init_weights()


STDC = {"stdc_type": "STDCNet1", "in_channels": 3, "channels": (4, 8, 16, 16, 16), "num_convs": 4}
STDC |= {"bottleneck_type": "cat", "norm_cfg": {"type": "BN"}, "act_cfg": {"type": "ReLU"}}


@pytest.mark.parametrize(
    ("kind", "more"),
    [(MobileNetV2, {"widen_factor": 0.25}), (STDCNet, STDC), (ResNet, SMALL), (ResNetV1c, SMALL)],
)
@pytest.mark.parametrize("kaiming", [False, True])
def test_a_file_that_matches_nothing_is_refused(
    kind: type, more: dict, kaiming: bool, tmp_path: Path
) -> None:
    """Also where the parts of the backbone have given themselves values before the file is loaded."""
    path = tmp_path / "other.pth"
    torch.save({"conv1.other": torch.ones(1)}, path)
    init = [{"type": "Pretrained", "checkpoint": str(path)}]
    init = [{"type": "Kaiming", "layer": "Conv2d"}, *init] if kaiming else init
    model = kind(**more, init_cfg=init)
    with pytest.raises(UserError, match=rf"does not fit the backbone {kind.__name__}.*conv1\.other"):  # noqa: SIM117
        with backbone_weights.every_weight_loaded(model):
            model.init_weights()


@pytest.mark.parametrize(("kind", "more"), [(MobileNetV2, {"widen_factor": 0.25}), (STDCNet, STDC)])
def test_other_families_are_loaded_whole(kind: type, more: dict, tmp_path: Path) -> None:
    state = {key: torch.rand_like(value.float()) for key, value in kind(**more).state_dict().items()}
    torch.save({"state_dict": {f"backbone.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    model = kind(**more, init_cfg={"type": "Pretrained", "checkpoint": f"mmcls://{tmp_path / 'w.pth'}"})
    with backbone_weights.every_weight_loaded(model):
        model.init_weights()
    for name, value in model.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, state[name]), name


class Holder(BaseModule):
    """A backbone around another that has a file, and a part that has none."""

    def __init__(self, inner: BaseModule) -> None:
        super().__init__()
        self.parts = ModuleList([inner, MobileNetV2(widen_factor=0.25)])


def test_only_what_has_a_file_is_judged_by_it(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = weights_of(ResNet, path)
    model = Holder(backbone(ResNet, path))
    with backbone_weights.every_weight_loaded(model):
        model.init_weights()
    assert torch.equal(model.parts[0].conv1.weight, state["conv1.weight"])
    assert not any(torch.isnan(value).any() for value in model.state_dict().values())


@pytest.mark.parametrize("left_out", ["", "layers.0.attn.attn.in_proj_weight"])
def test_the_image_encoder_of_san_has_every_weight_of_its_part_of_the_file(
    left_out: str, tmp_path: Path
) -> None:
    size = {"img_size": 32, "embed_dims": 8, "num_layers": 1, "num_heads": 2, "pre_norm": True}
    torch.manual_seed(1)
    state = {name: torch.rand_like(value) for name, value in VisionTransformer(**size).state_dict().items()}
    file = {f"image_encoder.{name}": value for name, value in state.items() if name != left_out}
    path = tmp_path / "clip.pth"
    torch.save(file | {"text_encoder.x": torch.ones(1)}, path)
    model = torch.nn.Module()
    model.image_encoder = VisionTransformer(
        **size, init_cfg={"type": "Pretrained_Part", "checkpoint": str(path)}
    )
    (encoder,) = backbone_weights.backbones(model)
    with contextlib.ExitStack() as stack:
        if left_out:
            stack.enter_context(pytest.raises(UserError, match=left_out))
        stack.enter_context(backbone_weights.every_weight_loaded(encoder))
        encoder.init_weights()
    assert left_out or not tiny.differences(encoder.state_dict(), state)


def test_a_backbone_without_a_file_is_left_alone() -> None:
    """A decode head may have the only one."""
    model = ResNet(**SMALL)
    with backbone_weights.every_weight_loaded(model):
        model.init_weights()
    assert not torch.isnan(model.conv1.weight).any()


def test_a_classifiers_file_stands_for_its_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth"
    model = {"backbone": {"init_cfg": [{"type": "Pretrained", "checkpoint": "mmcls://mobilenet_v2"}]}}
    with pytest.raises(UserError, match=name):
        pretrained.localise(model)
    place = tmp_path / "data" / "pretrained" / name
    place.parent.mkdir(parents=True)
    place.touch()
    assert pretrained.localise(model) == [f"data/pretrained/{name}"]
    assert model["backbone"]["init_cfg"][0]["checkpoint"] == f"mmcls://data/pretrained/{name}"
    assert pretrained.forget(model) == []
    assert model["backbone"]["init_cfg"] == []


def test_a_missing_file_is_named_with_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = {"pretrained": "open-mmlab://resnet50_v1c", "backbone": {"type": "ResNetV1c"}}
    with pytest.raises(UserError, match=r"https://.*resnet50_v1c-2cccc1ad\.pth.*data/pretrained"):
        pretrained.localise(model)
    place = tmp_path / "data" / "pretrained" / "resnet50_v1c-2cccc1ad.pth"
    place.parent.mkdir(parents=True)
    place.touch()
    assert pretrained.localise(model) == ["data/pretrained/resnet50_v1c-2cccc1ad.pth"]
    assert model["pretrained"] == "data/pretrained/resnet50_v1c-2cccc1ad.pth"


@pytest.mark.parametrize(
    ("values", "without"),
    [
        ({"model": {"pretrained": "open-mmlab://resnet50_v1c"}}, "model.pretrained=None"),
        ({"model": {"backbone": {"init_cfg": REFERENCE}}}, "model.backbone.init_cfg=None"),
        ({"model": {"decode_head": [{"init_cfg": [REFERENCE]}]}}, "model.decode_head.0.init_cfg=None"),
        ({"load_from": "https://x.org/mit.pth"}, "load_from=None"),
    ],
)
def test_what_does_without_the_file_is_said_where_it_is_named(
    values: dict, without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"(from scratch: --set {without})")):
        pretrained.localise(values)


def test_a_path_that_is_not_there_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file /nowhere/x\.pth, which the config names$"):
        pretrained.placed("/nowhere/x.pth", tmp_path)
    with pytest.raises(UserError, match=rf"place x\.pth as {tmp_path}/x\.pth"):
        pretrained.placed("x.pth", tmp_path)


@pytest.mark.parametrize("reference", ["torchvision://resnet50", "nowhere://x", "weights/none.pth"])
def test_other_sources_that_are_not_there(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        pretrained.localise({"init_cfg": {"type": "Pretrained", "checkpoint": reference}})


def test_the_class_stands_for_its_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a config in pure Python names it; backbones that load for themselves look for the short one."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "data" / "pretrained" / "vit.pth"
    place.parent.mkdir(parents=True)
    place.touch()
    init = {"type": "mmengine.model.PretrainedInit", "checkpoint": "vit.pth"}
    assert pretrained.localise({"backbone": {"init_cfg": init}}) == ["data/pretrained/vit.pth"]
    assert init == {"type": "Pretrained", "checkpoint": "data/pretrained/vit.pth"}
