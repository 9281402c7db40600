"""Pretrained weights: fetched by the preparation, and missed before a training is submitted."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.catalog import pretrained
from jobs.prepare import lock, weights
from jobs.run.errors import UserError
from launch.submit import configs
from tests.prepare.test_prepare_download import CONTENT, PATIENCE, Server
from tests.prepare.test_prepare_download import server as server

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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, data = tmp_path / "given", tmp_path / "data"
    given.mkdir()
    assert weights.fetch(pretrained.DEFAULT, data, given) is None
    assert f"{NAME} is not in {given}" in capsys.readouterr().out
    (given / NAME).write_bytes(b"weights")
    with pytest.raises(UserError, match=rf"{given}/{NAME} is damaged: its sha256 is .*, not 2cccc1ad…"):
        weights.fetch(pretrained.DEFAULT, data, given)
    assert not (data / "pretrained" / NAME).exists()
    assert (given / NAME).read_bytes() == b"weights"
    monkeypatch.setitem(weights.DIGESTS, NAME, hashlib.sha256(b"weights").hexdigest())
    assert weights.fetch(pretrained.DEFAULT, data, given) == data / "pretrained" / NAME
    assert (data / "pretrained" / NAME).read_bytes() == b"weights"


def test_two_preparations_at_once_take_a_given_file_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one would publish what the other is just writing."""
    given, data = tmp_path / "given", tmp_path / "data"
    given.mkdir()
    data.mkdir()
    (given / "mine.pth").write_bytes(CONTENT)
    monkeypatch.setattr(lock, "POLL", 0.02)
    with ThreadPoolExecutor(1) as thread:
        with lock.hold(data):
            place = thread.submit(weights.fetch, "https://x.org/mine.pth", data, given)
            time.sleep(0.1)
            assert not list(data.glob("pretrained/*"))
        assert place.result() == data / "pretrained" / "mine.pth"
    assert (data / "pretrained" / "mine.pth").read_bytes() == CONTENT


def test_a_checksums_file_beside_the_given_file_counts(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(b"weights")
    url = "https://x.org/mine.pth"
    for content, fits in ((b"weights", True), (b"others", False)):
        line = f"{hashlib.sha256(content).hexdigest()}  mine.pth\n"
        (tmp_path / "SHA256SUMS").write_bytes(b"# l\xe4uft\n" + line.encode())  # in Latin-1, too
        if fits:
            weights.check_file(tmp_path / "mine.pth", "mine.pth", url)
        else:
            with pytest.raises(UserError, match="as listed beside it"):
                weights.check_file(tmp_path / "mine.pth", "mine.pth", url)


GOOD = hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize(
    ("name", "url", "fits"),
    [
        (f"resnet18-{GOOD[:8]}.pth", weights.PUBLISHERS[0], True),
        ("resnet18-f37072fd.pth", weights.PUBLISHERS[0], False),
        (NAME, weights.PUBLISHERS[1], False),
        (f"vit_20230101-{GOOD[:8]}.pth", weights.PUBLISHERS[1], True),
        # A date promises nothing, and an address that nobody vouches for neither.
        ("mit_b0-20220624.pth", weights.PUBLISHERS[1], True),
        ("mine-2cccc1ad.pth", "https://x.org/", True),
        ("mine.pth", weights.PUBLISHERS[1], True),
    ],
)
def test_the_digest_in_a_known_name_is_held_to(name: str, url: str, fits: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"weights")
    assert (not weights.difference(tmp_path / name, name, url + name)) is fits


def test_damage_is_set_aside_fetched_again_and_an_error_where_that_is_damaged_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`server` sends good content under a name that promises other: a mirror that lies."""
    good = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setattr(weights, "PUBLISHERS", (server.url,))
    place = tmp_path / "pretrained"
    place.mkdir()
    for begin in (good[:8], "deadbeef"):
        name = f"mine-{begin}.pth"
        (place / name).write_bytes(b"damaged")
        monkeypatch.setattr(weights, "MIRRORS", {name: (f"{server.url}/good",)})
        if begin == good[:8]:
            assert weights.fetch(f"{server.url}/{name}", tmp_path, patience=PATIENCE) == place / name
            assert (place / name).read_bytes() == CONTENT
        else:
            with pytest.raises(UserError, match=rf"its sha256 is {good}, not deadbeef…"):
                weights.fetch(f"{server.url}/{name}", tmp_path, patience=PATIENCE)
            assert not (place / name).exists()
        assert (place / f"{name}.damaged").read_bytes() == b"damaged"
        assert not (place / f"{name}.part").exists()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h/a/..", ""), ("https://h/a/.", ""), ("https://h/", ""), ("https://h", ""),
        ("https://h/a/.hidden", ""), ("https://h/a%2Fb", ""), ("https://h/%2e%2e", ""), ("https://h/a b", ""),
        ("https://h/-rf", ""), ("https://h/" + "a" * 300, ""), ("https://h/a\n.pth", ""),
        ("https://h/a.pth?download=1#x", "a.pth"), ("https://h/d/swin-b_1.2+x=@.pth", "swin-b_1.2+x=@.pth"),
    ],
)  # fmt: skip
def test_an_address_must_end_in_a_files_name(url: str, name: str, tmp_path: Path) -> None:
    if name:
        assert pretrained.published(url)[1] == name
    else:
        with pytest.raises(UserError, match="does not end in a file's name"):
            weights.fetch(url, tmp_path)
        with pytest.raises(UserError, match="does not end in a file's name"):
            pretrained.placed(url, tmp_path)


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("torchvision://resnet50", "https://download.pytorch.org/models/resnet50-0676ba61.pth"),
        ("modelzoo://resnet50", "https://download.pytorch.org/models/resnet50-0676ba61.pth"),
        ("torchvision://vgg16", "https://download.pytorch.org/models/vgg16-397923af.pth"),
        ("open-mmlab://resnet50_caffe", "resnet50_caffe"),
        ("openmmlab://resnet50_v1c", NAME),
    ],
)
def test_every_name_that_mmengine_knows_has_its_address(reference: str, url: str) -> None:
    assert url in str(pretrained.address(reference))


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
    configs.check_weights(chain, tmp_path, {pretrained.DEFAULT})
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
