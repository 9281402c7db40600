"""Mistakes in a dataset of one's own that the login node can see: nothing is submitted for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.run.errors import UserError
from launch.submit import configs, data_ready

CONFIG = """
custom_imports = dict(imports=["mine"], allow_failed_imports=False)
model = dict(type="EncoderDecoder", decode_head=dict(type="FCNHead"))
common = dict(type={type!r}, data_root="data/toy"{more})
train_dataloader = dict(dataset=dict(data_prefix=dict(img_path="img"), **common))
val_dataloader = train_dataloader
val_evaluator = dict(type="IoUMetric")
train_cfg = dict(type="IterBasedTrainLoop", max_iters=2)
"""
CLASS = """
from helper import NAMES
class MyDataset(BaseSegDataset):
    {name} = NAMES
class Other(BaseSegDataset):
    CLASSES = NAMES
"""


def chain(folder: Path, name: str = "CLASSES", type: str = "MyDataset", more: str = "") -> configs.Chain:
    (folder / "mine.py").write_text(CLASS.format(name=name))
    (folder / "helper.py").write_text("NAMES = ('a',)\n")
    (folder / "c.py").write_text(CONFIG.format(type=type, more=more))
    return configs.check(folder / "c.py")


def test_classes_as_before_1_0_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"mine\.py, line 3: MyDataset has CLASSES and PALETTE.*METAINFO = dict"
    ):
        chain(tmp_path)
    # Neither where the config gives the classes, nor of a class that it does not use.
    chain(tmp_path, more=", metainfo=dict(classes=('a',))")
    found = chain(tmp_path, "METAINFO")
    assert {module.name for module in found.modules} == {"mine.py", "helper.py"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["a.JPG", "b.JPG", "c.txt"],
            r"ends in '.jpg' \(there are 2 × .JPG, 1 × .txt\): set img_suffix='.JPG'",
        ),
        ([], "toy/img is empty"),
        (None, "no folder .*toy/img"),
        (["sub/a.jpg"], ""),
    ],
)
def test_a_folder_without_images_is_refused(files: list[str] | None, message: str, tmp_path: Path) -> None:
    found = chain(tmp_path, "METAINFO", "BaseSegDataset")
    place = tmp_path / "data" / "toy" / "img"
    (place if files is not None else place.parent).mkdir(parents=True)
    for name in files or []:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).touch()
    if not message:
        data_ready.wait_for(tmp_path / "data", "local", found)
        return
    with pytest.raises(UserError, match=message):
        data_ready.wait_for(tmp_path / "data", "local", found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\r\nb\r\n", ""),
        (b"", r"names\.txt names none"),
        (b"a\nb\n\n", r"line 3 of \S*names\.txt is empty"),
        (b"\xef\xbb\xbfa\n", r"begins with a byte order mark \(BOM\)"),
        (b"\xff\xfea\0", "is not a text in UTF-8"),
        (b"a.jpg\n", r"names 'a\.jpg': it has to be without the suffix"),
        (b"c\n", r"names 'c', and there is no \S*/c\.jpg; there is c\.JPG: set img_suffix"),
        (None, r"list of images, \S*names\.txt, is not there"),
    ],
)
def test_a_list_that_would_find_no_image_is_refused(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    found = chain(tmp_path, "METAINFO", "BaseSegDataset", more=", ann_file='names.txt'")
    place = tmp_path / "data" / "toy"
    (place / "img").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "c.JPG"):
        (place / "img" / name).touch()
    if content is not None:
        (place / "names.txt").write_bytes(content)
    if not message:
        data_ready.wait_for(tmp_path / "data", "local", found)
        return
    with pytest.raises(UserError, match=f"train_dataloader: .*{message}"):
        data_ready.wait_for(tmp_path / "data", "local", found)
