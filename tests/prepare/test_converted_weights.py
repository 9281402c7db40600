"""Weights as timm and the models' authors publish them become what the zoo's configs begin with."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from jobs.catalog import pretrained
from jobs.mmseg import backbone_weights, compat
from jobs.prepare import weights
from jobs.run.digests import digest
from jobs.run.errors import UserError
from launch.submit import configs, preparation
from tests import zoo
from tests.prepare.test_prepare_download import PATIENCE, Server
from tests.prepare.test_prepare_download import server as server

compat.prepare()

from mmengine.registry import init_default_scope  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

WIDTH, DEPTH = 16, 2


def published(kind: str) -> dict[str, torch.Tensor]:
    """Random weights by the names of timm's vision_transformer.py (`vit`, and `mae`, whose authors take it),
    or of BEiT's authors."""
    torch.manual_seed(1)
    square, column = (WIDTH, WIDTH), (WIDTH,)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH), "patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": column, "norm.weight": column, "norm.bias": column,
        "head.weight": (5, WIDTH),
    }  # fmt: skip
    block: dict[str, tuple[int, ...]] = {
        "norm1.weight": column, "norm1.bias": column, "norm2.weight": column, "norm2.bias": column,
        "attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.proj.weight": square, "attn.proj.bias": column,
        "mlp.fc1.weight": (4 * WIDTH, WIDTH), "mlp.fc1.bias": (4 * WIDTH,),
        "mlp.fc2.weight": (WIDTH, 4 * WIDTH), "mlp.fc2.bias": column,
    }  # fmt: skip
    if kind == "beit":
        block |= dict.fromkeys(("attn.q_bias", "attn.v_bias", "gamma_1", "gamma_2"), column)
        block |= {"attn.relative_position_bias_table": (12, 2)}
    else:
        block |= {"attn.qkv.bias": (3 * WIDTH,)}
        shapes |= {"pos_embed": (1, 5, WIDTH)}
    shapes |= {f"blocks.{number}.{key}": shape for number in range(DEPTH) for key, shape in block.items()}
    return {name: torch.rand(shape) for name, shape in shapes.items()}


def sha256(file: Path) -> str:
    return digest(file, "sha256")


@pytest.mark.parametrize(
    ("name", "wrapped"),
    [
        ("vit_large_p16.pth", ""),
        ("jx_vit_base_p16_224-80ecf9dd.pth", ""),
        ("deit_small_patch16_224-cd65a155.pth", "model"),
        ("beit_base_patch16_224_pt22k_ft22k.pth", "model"),
    ],
)
def test_what_is_published_is_converted_once(
    name: str, wrapped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, kind = pretrained.CONVERTED[name]
    given = tmp_path / "given"
    given.mkdir()
    content = published(kind)
    source = given / pretrained.file_name(url)
    torch.save({wrapped: content} if wrapped else content, source)
    monkeypatch.setitem(weights.DIGESTS, source.name, sha256(source))
    data = tmp_path / "data"
    file = weights.fetch(f"pretrain/{name}", data, given)
    assert file == data / "pretrained" / name
    assert pretrained.placed(f"./pretrain/{name}", data / "pretrained") == file
    # Nothing else is left, and what is there is not made again.
    assert list(file.parent.iterdir()) == [file]
    before = file.stat().st_mtime_ns
    assert weights.fetch(f"pretrain/{name}", data, given) == file
    assert file.stat().st_mtime_ns == before


REFERRING = [name for family in ("beit", "dpt", "mae", "setr", "vit") for name in zoo.families()[family]]
"""The configs that begin with such weights."""


@pytest.mark.parametrize("name", REFERRING)
def test_every_weight_of_the_backbone_comes_from_the_published_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backbone of each config, small: two layers of two heads."""
    chain = configs.check(configs.locate(f"mmseg::{name}"))
    (reference,) = configs.weights(chain)
    url, kind = pretrained.CONVERTED[Path(reference).name]
    content = published("mae" if "mae" in url else kind)
    source = tmp_path / pretrained.file_name(url)
    torch.save(content, source)
    monkeypatch.setitem(weights.DIGESTS, source.name, sha256(source))
    file = weights.fetch(reference, tmp_path / "data", tmp_path)
    described = dict(chain.values["model"]["backbone"])
    described |= {"img_size": (32, 32), "embed_dims": WIDTH, "num_layers": DEPTH, "num_heads": 2}
    described |= {"out_indices": [DEPTH - 1], "init_cfg": {"type": "Pretrained", "checkpoint": str(file)}}
    init_default_scope("mmseg")
    model = MODELS.build({key: value for key, value in described.items() if key != "pretrained"})
    with backbone_weights.every_weight_loaded(model):
        model.init_weights()
    found = model.state_dict()
    assert torch.equal(found["patch_embed.projection.weight"], content["patch_embed.proj.weight"])
    assert torch.equal(found["layers.1.ffn.layers.1.weight"], content["blocks.1.mlp.fc2.weight"])
    qkv = "attn.attn.in_proj_weight" if kind == "vit" else "attn.qkv.weight"
    assert torch.equal(found[f"layers.0.{qkv}"], content["blocks.0.attn.qkv.weight"])
    assert not any(torch.isnan(value).any() for value in found.values())


def test_a_published_file_that_lies_in_its_place_is_converted_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the one name that both have."""
    name = "jx_vit_base_p16_224-80ecf9dd.pth"
    file = tmp_path / "pretrained" / name
    file.parent.mkdir()
    torch.save(published("vit"), file)
    monkeypatch.setitem(weights.DIGESTS, name, sha256(file))
    assert weights.fetch(f"pretrain/{name}", tmp_path) == file
    assert "layers.0.ln1.weight" in compat.load(file)
    assert list(file.parent.iterdir()) == [file]


def test_downloaded_and_refused_where_it_is_something_else(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "given" / "mae_pretrain_vit_base.pth"
    other.parent.mkdir()
    torch.save({"model": {"conv1.weight": torch.ones(1)}}, other)
    reference = "./pretrain/mae_pretrain_vit_base_mmcls.pth"
    with pytest.raises(UserError, match=r"mae_pretrain_vit_base.pth is not what beit2mmseg.py converts"):
        weights.fetch(reference, tmp_path, other.parent)
    assert not (tmp_path / "pretrained" / "mae_pretrain_vit_base_mmcls.pth").exists()
    monkeypatch.setitem(
        pretrained.CONVERTED, "mae_pretrain_vit_base_mmcls.pth", (f"{server.url}/absent", "beit")
    )
    with pytest.raises(UserError, match=r"absent could not be downloaded \(.*HTTP 404"):
        weights.fetch(reference, tmp_path, patience=PATIENCE)


def test_every_reference_of_the_zoo_can_be_fetched() -> None:
    for name in zoo.all_configs():
        chain = configs.check(configs.locate(f"mmseg::{name}"), evaluated=False, here=False)
        clip = pretrained.meant_clip(chain.values.get("model"))
        assert bool(clip) == (name.startswith("san/") and "coco" not in name)
        for reference in [clip] if clip else configs.weights(chain):
            url, file = pretrained.published(reference)
            assert url.startswith("https://")
            assert file.endswith(".pth")


def test_a_missing_file_that_can_be_made_is_said_to_be(tmp_path: Path) -> None:
    chain = configs.check(configs.locate("mmseg::setr/setr_vit-l-mla_8xb1-160k_ade20k-512x512.py"))
    with pytest.raises(UserError) as error:
        configs.check_weights(chain, tmp_path, set())
    said = str(error.value)
    assert "prepare.py --weights pretrain/vit_large_p16.pth makes them of https://github.com/" in said
    assert f"as {tmp_path}/pretrained/vit_large_p16.pth" in said
    # A path of the user's own is none of those, whatever its name.
    for own in ("data/mine/vit_large_p16.pth", "/mine/vit_large_p16.pth", "~/vit_large_p16.pth"):
        assert pretrained.address(own) is None


@pytest.mark.parametrize(
    ("config", "beside"),
    [
        ("unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py", ""),
        ("san/san-vit-b16_pascal_context-640x640.py", f" (its weights: --weights {pretrained.CLIP['base']})"),
        (
            "fcn/fcn_r50-d8_4xb4-40k_pascal-context-480x480.py",
            " (its weights: --weights open-mmlab://resnet50_v1c)",
        ),
    ],
)
def test_weights_are_named_where_the_dataset_cannot_be_prepared(config: str, beside: str) -> None:
    arguments = argparse.Namespace(
        dataset=None, weights=None, no_weights=False, verify=False, for_config=f"mmseg::{config}"
    )
    with pytest.raises(UserError) as error:
        preparation.fit_to_config(arguments)
    assert str(error.value).endswith(f"only the datasets that --dataset lists can be prepared{beside}")


def test_san_is_told_which_weights_are_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain = configs.check(configs.locate("mmseg::san/san-vit-l14_voc12aug-640x640.py"))
    right = "https://download.openmmlab.com/mmsegmentation/v0.5/san/clip_vit-large-patch14-336_3rdparty-0b5df9cb.pth"
    with pytest.raises(UserError, match=f"SAN starts from CLIP's.*--set model.pretrained={right}$"):
        configs.check_weights(chain, tmp_path, set())
    arguments = argparse.Namespace()
    preparation.fit_weights(arguments, chain, "san")
    assert arguments.weights == [right]
    assert f"--set model.pretrained={right}" in capsys.readouterr().err
    # One that the user has placed under the name is taken.
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / "jx_vit_base_p16_224-80ecf9dd.pth").touch()
    configs.check_weights(chain, tmp_path, set())


TIMM = "model = dict(backbone=dict(_delete_=True, type='{}', model_name='resnet18'{}))"


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("TIMMBackbone", "", "--set model.backbone.pretrained=False model.backbone.checkpoint_path=data/"),
        (
            "TIMMBackbone",
            ", pretrained=True, out_indices=(1, 3)",
            r"features_only=True, out_indices=\[1, 3\]",
        ),
        ("mmpretrain.TIMMBackbone", ", pretrained=True", "timm.create_model\\('resnet18', pretrained=True"),
        (
            "TIMMBackbone",
            ", pretrained=False, checkpoint_path='data/pretrained/x.pth'",
            "missing: place .*x.pth",
        ),
        ("mmpretrain.TIMMBackbone", "", ""),
        ("TIMMBackbone", ", pretrained=False", ""),
    ],
)
def test_timms_weights_are_a_file(kind: str, more: str, said: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    base = "mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py"
    mine.write_text(f"_base_ = '{base}'\n{TIMM.format(kind, more)}\nmodel['pretrained'] = None\n")
    chain = configs.check(mine, here=False)
    if said:
        with pytest.raises(UserError, match=said):
            configs.check_weights(chain, tmp_path, set())
    else:
        configs.check_weights(chain, tmp_path, set())
    # A checkpoint brings all weights: nothing is fetched then either.
    model = chain.values["model"]
    pretrained.forget(model)
    pretrained.check_timm(model)
    assert list(pretrained.references(model)) == []
