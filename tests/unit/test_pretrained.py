"""Pretrained weights: from a placed file, and every one of the backbone's."""

from pathlib import Path

import pytest
import torch

from jobs import compat
from jobs.errors import UserError
from jobs.train import pretrained

compat.prepare()

from mmseg.models.backbones import ResNet, ResNetV1c  # noqa: E402

SMALL = {"depth": 18, "base_channels": 8, "norm_cfg": {"type": "BN"}}


def weights_of(kind: type, path: Path, **more: object) -> dict[str, torch.Tensor]:
    """Writes weights such as a classifier's to `path`; returns them."""
    torch.manual_seed(1)
    state = {key: torch.rand_like(value.float()) for key, value in kind(**SMALL, **more).state_dict().items()}
    torch.save(state | {"fc.weight": torch.ones(1)}, path)
    return state


def backbone(kind: type, path: Path, **more: object):
    return kind(**SMALL, **more, init_cfg={"type": "Pretrained", "checkpoint": str(path)})


@pytest.mark.parametrize(("kind", "more"), [(ResNet, {}), (ResNetV1c, {"stem_channels": 8})])
def test_every_weight_comes_from_the_file(kind: type, more: dict, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = weights_of(kind, path, **more)
    model = backbone(kind, path, **more)
    with pretrained.every_weight_loaded(model, str(path)):
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
        with pretrained.every_weight_loaded(model, str(path)):
            model.init_weights()


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


@pytest.mark.parametrize("reference", ["torchvision://resnet50", "nowhere://x", "weights/none.pth"])
def test_other_sources_that_are_not_there(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        pretrained.localise({"init_cfg": {"type": "Pretrained", "checkpoint": reference}})
