"""Pretrained weights: fetched by the preparation, and missed before a training is submitted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from jobs.errors import UserError
from jobs.prepare import weights
from jobs.prepare.archives import DamagedArchive
from launch import configs
from tests.unit.test_prepare_download import CONTENT, PATIENCE, Server
from tests.unit.test_prepare_download import server as server

NAME = "resnet50_v1c-2cccc1ad.pth"
RECIPE = configs.CHECKOUT / "configs/upernet_r50_voc-aug_512x512_epoch-200.py"


def test_fetched_from_a_mirror_through_a_break(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "MIRRORS", {"absent": (f"{server.url}/breaks",)})
    path = weights.fetch(f"{server.url}/absent", tmp_path, patience=PATIENCE)
    assert path == tmp_path / "pretrained" / "absent"
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["absent"]
    server.seen.clear()
    assert weights.fetch(f"{server.url}/absent", tmp_path, patience=PATIENCE) == path
    assert server.seen == []


def test_what_no_mirror_has_is_named_with_its_place(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"absent: HTTP 404.*place it as {tmp_path}/pretrained/absent"):
        weights.fetch(f"{server.url}/absent", tmp_path, patience=PATIENCE)


def test_taken_from_the_archives_folder_and_missed_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, data = tmp_path / "given", tmp_path / "data"
    given.mkdir()
    assert weights.fetch(weights.DEFAULT, data, given) is None
    assert f"{NAME} is not in {given}" in capsys.readouterr().out
    (given / NAME).write_bytes(b"weights")
    assert weights.fetch(weights.DEFAULT, data, given) == data / "pretrained" / NAME
    assert (data / "pretrained" / NAME).read_bytes() == b"weights"
    # OpenMMLab's names are not always the digest's: it is said, the file is kept.
    assert f"{NAME} has the sha256 {hashlib.sha256(b'weights').hexdigest()}" in capsys.readouterr().out


def test_the_digest_in_a_name_of_pytorchs_is_held_to(tmp_path: Path) -> None:
    file = tmp_path / "x.pth.part"
    good = hashlib.sha256(b"weights").hexdigest()[:8]
    for name, fits in ((f"resnet18-{good}.pth", True), ("resnet18-f37072fd.pth", False)):
        file.write_bytes(b"weights")
        if fits:
            weights.check(file, name, weights.STRICT + name)
        else:
            with pytest.raises(DamagedArchive, match="not f37072fd"):
                weights.check(file, name, weights.STRICT + name)
            assert not file.exists()


@pytest.mark.parametrize("reference", ["resnet50.pth", "torchvision://resnet51"])
def test_what_is_no_reference(reference: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        weights.fetch(reference, tmp_path)


def test_the_recipe_misses_its_file_before_it_is_submitted(tmp_path: Path) -> None:
    chain = configs.check(RECIPE)
    place = tmp_path / "pretrained" / NAME
    with pytest.raises(UserError) as error:
        configs.check_weights(chain, tmp_path, set())
    for said in (f"place it as {place}", f"https://download.openmmlab.com/pretrain/third_party/{NAME}"):
        assert said in str(error.value)
    assert "--weights open-mmlab://resnet50_v1c fetches" in str(error.value)
    configs.check_weights(chain, tmp_path, {weights.DEFAULT})
    place.parent.mkdir()
    place.touch()
    configs.check_weights(chain, tmp_path, set())


BASE = (
    "default_scope = 'mmseg'\ntrain_dataloader = val_dataloader = val_evaluator = train_cfg = dict()\n"
    "file = 'https://x.org/swin.pth'\n"
    "model = dict(decode_head=dict(), backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=file)))\n"
)
INHERITS = "_base_ = './base.py'\n"


@pytest.mark.parametrize(
    ("text", "overrides", "missed"),
    [
        (INHERITS, {}, "swin.pth"),
        (INHERITS + "model = dict(backbone=dict(init_cfg=None))\n", {}, ""),
        (INHERITS + "model = dict(backbone=dict(_delete_=True, type='ResNet'))\n", {}, ""),
        (
            INHERITS + "model = dict(backbone=dict(init_cfg=dict(checkpoint='data/mine.pth')))\n",
            {},
            "mine.pth",
        ),
        (INHERITS, {"model.backbone.init_cfg.checkpoint": "torchvision://resnet18"}, "resnet18-f37072fd.pth"),
        (INHERITS, {"model.backbone.init_cfg": None}, ""),
        (INHERITS + "model = dict(pretrained='/nowhere/x.pth')\n", {}, "/nowhere/x.pth"),
        # A relative path is none of the directory that one is in.
        (
            INHERITS + "model = dict(backbone=dict(init_cfg=None), pretrained='tests/conftest.py')\n",
            {},
            "conftest",
        ),
        # What only running it would tell is left to the job.
        (INHERITS + "import os\nmodel = dict(backbone=dict(init_cfg=os.environ))\n", {}, ""),
        (INHERITS + "model = dict()\nmodel['pretrained'] = '/nowhere/x.pth'\n", {}, "/nowhere/x.pth"),
        (INHERITS + "model = dict(backbone=dict(init_cfg=None))\nload_from = '/gone/y.pth'\n", {}, "y.pth"),
    ],
)
def test_the_nearest_reference_counts(text: str, overrides: dict, missed: str, tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "mine.py").write_text(text)
    chain = configs.check(tmp_path / "mine.py", overrides)
    if missed:
        with pytest.raises(UserError, match=missed):
            configs.check_weights(chain, tmp_path, set())
    else:
        configs.check_weights(chain, tmp_path, set())


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_relative_path_means_its_file_in_the_place(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BASE.replace("https://x.org/swin.pth", "./pretrain/vit.pth"))
    chain = configs.check(tmp_path / "mine.py")
    place = tmp_path / "pretrained" / "vit.pth"
    with pytest.raises(UserError, match=rf"place \./pretrain/vit\.pth as {place}"):
        configs.check_weights(chain, tmp_path, set())
    place.parent.mkdir()
    place.touch()
    configs.check_weights(chain, tmp_path, set())
