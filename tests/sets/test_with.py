"""What `env/setup.sh --with mmdet,mmpretrain` is for: the zoo's families that need them, and backbones of
mmpretrain's in a config of the user's. `make with` runs this."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.catalog import installed
from jobs.mmseg import compat
from jobs.mmseg.model import weights_of
from launch.submit import configs
from tests import zoo
from tests.support import tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (installed.is_installed("mmdet") and installed.is_installed("mmpretrain")),
        reason="needs an environment of env/setup.sh --with mmdet,mmpretrain",
    ),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_data(tmp_path_factory.mktemp("data"), train=8, val=2)


@pytest.mark.parametrize("family", ["convnext", "mask2former", "maskformer", "poolformer"])
def test_a_family_that_needs_them(family: str, data: Path, tmp_path: Path) -> None:
    assert zoo.refusal(zoo.member(family)) == ""
    assert tuple(zoo.play(zoo.member(family), tmp_path, data)) == zoo.STAGES


def test_only_what_needs_something_else_is_refused() -> None:
    refused = {name for name in zoo.all_configs() if zoo.refusal(name)}
    assert {name.split("/")[0] for name in refused} == {"dsdl", "swin", "vpd"}
    assert len(refused) == 5


VIT = {"embed_dims": 16, "num_layers": 2, "num_heads": 2, "feedforward_channels": 32}
SWIN = {"embed_dims": 8, "depths": [2, 2], "num_heads": [1, 2], "extra_norm_every_n_blocks": 0}
BACKBONES = {
    # As DINOv2's: patches of 14 pixels, a scale for each layer.
    "dinov2": {
        "type": "mmpretrain.VisionTransformer", "arch": VIT, "img_size": 64, "patch_size": 14,
        "layer_scale_init_value": 1e-5, "out_type": "featmap", "out_indices": [1],
    },
    "mae": {
        "type": "mmpretrain.VisionTransformer", "arch": VIT, "img_size": 64, "drop_path_rate": 0.1,
        "out_type": "featmap", "out_indices": [1],
    },
    "swin-v2": {
        "type": "mmpretrain.SwinTransformerV2", "arch": SWIN, "img_size": 64, "window_size": 8,
        "out_indices": [1], "drop_path_rate": 0.2, "pad_small_map": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_of_mmpretrains(name: str, data: Path, tmp_path: Path) -> None:
    """With a classifier's file as mmpretrain publishes them; every weight comes from it."""
    settings = dict(BACKBONES[name])
    first = classifier(settings, data / "pretrained" / f"{name}.pth")
    settings["init_cfg"] = {"type": "Pretrained", "checkpoint": f"{name}.pth", "prefix": "backbone"}
    text, overrides = zoo.wrapper("fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py")
    head = {"in_channels": 16, "in_index": 0, "channels": 8, "norm_cfg": {"type": "BN"}, "num_classes": 21}
    mine = tmp_path / "mine.py"
    mine.write_text(
        f"{text}\nmodel = dict(\n    pretrained=None, auxiliary_head=None, "
        f"data_preprocessor=dict(size={overrides['model.data_preprocessor.size']}),\n"
        f"    backbone=dict(_delete_=True, **{settings}),\n    decode_head=dict(**{head}),\n)\n"
    )
    assert configs.weights(configs.check(mine)) == [f"{name}.pth"]
    whole, preempted = (
        zoo.placed(tmp_path / which, mine, data, **zoo.INTERRUPTIBLE) for which in ("whole", "preempted")
    )
    assert tuple(zoo.stages(whole, preempted, tmp_path, data)) == zoo.STAGES
    trained = weights_of(next(iter(whole.checkpoints.glob("*.pth"))))
    place = "patch_embed.projection.weight"
    found = torch.nn.functional.cosine_similarity(trained[f"backbone.{place}"], first[place], 0)
    assert found.min() > 0.9  # four steps away


def classifier(settings: dict[str, object], file: Path) -> dict[str, torch.Tensor]:
    """Random weights of the backbone, as a classifier's checkpoint in `file`."""
    compat.prepare()
    import mmpretrain.models as models

    torch.manual_seed(1)
    kind = getattr(models.backbones, str(settings["type"]).removeprefix("mmpretrain."))
    state = kind(**{key: value for key, value in settings.items() if key != "type"}).state_dict()
    state = {
        key: torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()
    }
    file.parent.mkdir(exist_ok=True)
    head = {"head.fc.weight": torch.ones(1)}
    torch.save({"state_dict": {f"backbone.{key}": value for key, value in state.items()} | head}, file)
    return state
