"""Configs read a packed dataset unchanged, and make the same samples of it."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.catalog import manifest
from jobs.catalog.manifest import Manifest
from jobs.mmseg import compat
from jobs.prepare.packed import convert
from jobs.run.deflate import content_digest
from jobs.run.errors import UserError
from tests.unit.test_config import RECIPE, ROOT, session

compat.prepare()

import torch  # noqa: E402
from mmengine import fileio  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmseg.datasets import BaseSegDataset  # noqa: E402
from mmseg.registry import DATASETS  # noqa: E402

from jobs.mmseg import config, packed  # noqa: E402


@pytest.fixture
def both(voc_small: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The same data root as a tree and packed."""
    for name in ("tree", "packed"):
        shutil.copytree(voc_small / "VOCdevkit", tmp_path / name / "VOCdevkit")
    convert.pack(tmp_path / "packed", "VOCdevkit")
    return tmp_path / "tree", tmp_path / "packed"


def dataset(data: Path, description: Any) -> Any:
    description = copy.deepcopy(description)
    description.data_root = str(data / "VOCdevkit/VOC2012")
    packed.read_packed(description)
    return DATASETS.build(description)


def same(a: Any, b: Any) -> bool:
    return torch.equal(a["inputs"], b["inputs"]) and torch.equal(
        a["data_samples"].gt_sem_seg.data, b["data_samples"].gt_sem_seg.data
    )


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_the_recipes_samples_are_the_same_bit_for_bit(both: tuple[Path, Path], loader: str) -> None:
    description = Config.fromfile(ROOT / RECIPE)[loader].dataset
    tree, one = (dataset(data, description) for data in both)
    assert len(tree) == len(one) > 0
    assert "backend_args" not in str(description)
    for index in range(len(tree)):
        samples = []
        for each in (tree, one):
            np.random.seed(index)
            samples.append(each[index])
        assert same(*samples)


@pytest.mark.parametrize("persistent", [False, True])
def test_forked_workers_read_it(both: tuple[Path, Path], persistent: bool) -> None:
    description = Config.fromfile(ROOT / RECIPE).val_dataloader.dataset
    tree, one = (dataset(data, description) for data in both)
    one[0]  # the container is open before they are forked
    loader: Any = torch.utils.data.DataLoader(
        one, batch_size=None, num_workers=2, multiprocessing_context="fork", persistent_workers=persistent
    )
    for _ in range(2):
        for index, sample in enumerate(loader):
            assert same(sample, tree[index])


def test_what_is_in_an_open_container_is_not_looked_for_again(
    both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another folder of it: a worker that is forked anew for every epoch would, every time."""
    backend, top = packed.PackedBackend(), both[1] / "VOCdevkit/VOC2012"
    names = backend.get_text(top / "ImageSets/Segmentation/trainaug.txt").split()
    monkeypatch.setattr(packed.packed, "locate", None)
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClassAug", "png")):
        found = backend.get(top / folder / f"{names[0]}.{suffix}")
        assert found == (both[0] / "VOCdevkit/VOC2012" / folder / f"{names[0]}.{suffix}").read_bytes()


def test_a_process_that_unpickles_the_backends_name_knows_it() -> None:
    """A spawned worker has imported nothing of ours when its transforms come."""
    given = {"backend": packed.BACKEND}
    code = (
        "import pickle, sys; args = pickle.load(sys.stdin.buffer);"
        "from mmengine.fileio import get_file_backend;"
        "print(type(get_file_backend(backend_args=args)).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(given), cwd=ROOT, check=True, capture_output=True
    )
    assert done.stdout.decode().strip() == "PackedBackend"


def test_a_dataset_without_lists_is_listed_from_the_container(both: tuple[Path, Path]) -> None:
    listed = []
    for data in both:
        description = {
            "type": "BaseSegDataset",
            "data_root": str(data / "VOCdevkit"),
            "data_prefix": {"img_path": "VOC2012/JPEGImages", "seg_map_path": "VOC2012/SegmentationClassAug"},
            "pipeline": [],
            "metainfo": {"classes": ("a",), "palette": [(0, 0, 0)]},
        }
        assert packed.read_packed(description) == (data == both[1])
        made = DATASETS.build(description)
        assert isinstance(made, BaseSegDataset)
        listed.append([os.path.relpath(made[index]["img_path"], data) for index in range(len(made))])
    assert listed[0] == listed[1] != []


@pytest.mark.parametrize("list_dir", [False, True])
@pytest.mark.parametrize("list_file", [False, True])
@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("top", ["VOCdevkit/VOC2012", "VOCdevkit/VOC2012/JPEGImages/"])
def test_listing_is_the_local_one(
    both: tuple[Path, Path], top: str, list_dir: bool, list_file: bool, recursive: bool
) -> None:
    found = [
        sorted(
            fileio.list_dir_or_file(
                data / top, list_dir=list_dir, list_file=list_file, recursive=recursive, backend_args=args
            )
        )
        for data, args in zip(both, (None, {"backend": packed.BACKEND}), strict=True)
    ]
    assert found[0] == found[1]


def test_what_is_asked_of_a_path_is_answered_as_for_the_tree(both: tuple[Path, Path]) -> None:
    args = {"backend": packed.BACKEND}
    for name in (
        "VOCdevkit/VOC2012",
        "VOCdevkit/VOC2012/JPEGImages",
        "VOCdevkit/VOC2012/JPEGImages/",
        "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt",
        "VOCdevkit/VOC2012/JPEGImages/none.jpg",
        "elsewhere",
    ):
        tree, one = (str(data / name) for data in both)
        for ask in (fileio.exists, fileio.isdir, fileio.isfile):
            assert ask(one, backend_args=args) == ask(tree), (ask, name)
    lists = [data / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt" for data in both]
    assert fileio.get_text(lists[1], backend_args=args) == lists[0].read_text()
    image = next((both[0] / "VOCdevkit/VOC2012/JPEGImages").iterdir())
    with packed.local(both[1] / image.relative_to(both[0])) as path:
        assert Path(path).read_bytes() == image.read_bytes()
        assert Path(path).suffix == ".jpg"
    assert not Path(path).exists()
    with pytest.raises(FileNotFoundError):
        fileio.get(both[1] / "VOCdevkit/VOC2012/JPEGImages/none.jpg", backend_args=args)


def test_a_start_puts_it_into_every_dataset_and_finds_the_data(
    both: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    here = session(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for data, is_packed in zip(both, (False, True), strict=True):
        (tmp_path / "data").unlink(missing_ok=True)
        (tmp_path / "data").symlink_to(data)
        resolved = config.resolve(here)
        config.check_data(resolved, here)
        prepared = config.prepare(resolved, here, 8)
        assert prepared.train_dataloader.dataset.type == "SeededDataset"
        inner = prepared.train_dataloader.dataset.dataset
        for node in (inner, prepared.val_dataloader.dataset.dataset, inner.pipeline[0], inner.pipeline[1]):
            assert (node.get("backend_args") == {"backend": packed.BACKEND}) == is_packed
        assert "backend_args" not in inner.pipeline[2]
        assert packed.BACKEND not in str(resolved)


def test_a_backend_of_the_users_own_stays(both: tuple[Path, Path]) -> None:
    own = {"backend": "local"}
    step = {"type": "LoadImageFromFile", "backend_args": own}
    description: dict[str, Any] = {
        "type": "PascalVOCDataset",
        "data_root": str(both[1] / "VOCdevkit/VOC2012"),
        "pipeline": [step],
    }
    assert packed.read_packed(description) == 1
    assert step["backend_args"] == own


def test_a_data_root_that_is_only_in_the_container_counts_as_there(
    both: tuple[Path, Path], tmp_path: Path
) -> None:
    top = both[0] / "mine/deep/images"
    top.mkdir(parents=True)
    (top / "a.png").write_bytes(b"x")
    root = both[0] / "mine"
    entry = manifest.Entry("deep/images/a.png", 1, content_digest(b"x"))
    table = manifest.files_text([entry])
    (root / manifest.FILES).write_bytes(table)
    made = Manifest("mine", "", 1, 1, manifest.table_digest(table))
    (root / manifest.MANIFEST).write_bytes(manifest.to_json(made))
    convert.pack(both[0], "mine")
    assert not (root / "deep").exists()
    assert packed.exists(root / "deep/images")
    here = session(tmp_path)
    cfg = Config({"train_dataloader": {"dataset": {"data_root": str(root / "deep")}}})
    config.check_data(cfg, here)
    cfg.train_dataloader.dataset.data_root = str(root / "other")
    with pytest.raises(UserError, match="is missing"):
        config.check_data(cfg, here)
