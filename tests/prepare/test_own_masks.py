"""Masks that hold something else than what a reader gives of them: refused, or read right."""

from __future__ import annotations

import argparse
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from jobs.mmseg import compat
from jobs.prepare import __main__ as command
from jobs.prepare.own import check
from jobs.run.errors import UserError
from tests import own_images
from tests.prepare.test_own_images import expected, labels_of, make, told

MANY = "".join(f"class {number}\n" for number in range(200))


def saved_by(folder: Path, save: Callable[[np.ndarray, Path], None], number: int | None = None) -> None:
    """Every mask, or one, saved in another way; `save` gets its labels and its path, and gives its suffix."""
    for at, mask in enumerate(sorted((folder / "masks").iterdir())):
        if number in (None, at):
            labels = np.array(Image.open(mask))
            mask.unlink()
            save(labels, mask)


def png(path: Path, labels: np.ndarray, depth: int, colour: int, palette: bytes = b"") -> None:
    """A PNG of any depth and colour type, which no library writes; `labels`: lines of bytes."""
    header = struct.pack(">IIBBBBB", *own_images.SIZE, depth, colour, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in labels)
    chunks = [(b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        if data or kind == b"IEND":
            content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)


def as_pages(labels: np.ndarray, path: Path) -> None:
    """As ImageJ saves it: a page for each class."""
    pages = np.stack([labels == 1, labels == 2]).astype(np.uint8)
    tifffile.imwrite(path.with_suffix(".tif"), pages, photometric="minisblack")


def as_frames(labels: np.ndarray, path: Path) -> None:
    first, second = (Image.fromarray((labels == one).astype(np.uint8)) for one in (1, 2))
    first.save(path.with_suffix(".gif"), save_all=True, append_images=[second])


def as_lossy_webp(labels: np.ndarray, path: Path) -> None:
    Image.fromarray(labels * 60).convert("RGB").save(path.with_suffix(".webp"), quality=90)


def as_lossy_webp_with_metadata(labels: np.ndarray, path: Path) -> None:
    picture = Image.fromarray(labels * 60).convert("RGB")
    picture.save(path.with_suffix(".webp"), quality=90, exif=Image.Exif().tobytes(), icc_profile=b"abc")


def as_tiff_of_jpegs(labels: np.ndarray, path: Path) -> None:
    Image.fromarray(labels * 60).save(path.with_suffix(".tif"), compression="jpeg", quality=80)


def as_4_bits(labels: np.ndarray, path: Path) -> None:
    png(path, labels[:, ::2] << 4 | labels[:, 1::2], 4, 0)


@pytest.mark.parametrize(
    ("save", "said"),
    [
        (as_pages, "scene_000.tif holds several pictures"),
        (as_frames, "scene_000.gif holds several pictures"),
        (as_lossy_webp, "scene_000.webp is a lossy WebP"),
        (as_lossy_webp_with_metadata, "scene_000.webp is a lossy WebP"),
        (as_tiff_of_jpegs, "scene_000.tif is a JPEG"),
        (as_4_bits, "scene_000.png is grey of less than 8 bits"),
    ],
)
def test_a_mask_that_is_not_what_was_drawn_is_refused(
    tmp_path: Path, save: Callable[[np.ndarray, Path], None], said: str
) -> None:
    """Of classes enough, each value that a reader gives of it is a label."""
    folder = own_images.write(tmp_path, 5)
    (folder / "classes.txt").write_text(MANY)
    saved_by(folder, save)
    assert said in told(folder)["unreadable mask"]


def as_lossless_webp(labels: np.ndarray, path: Path) -> None:
    Image.fromarray(np.repeat(labels[..., None], 3, 2)).save(
        path.with_suffix(".webp"), lossless=True, exact=True
    )


def with_an_overview(labels: np.ndarray, path: Path) -> None:
    """As GDAL's gdaladdo makes it."""
    with tifffile.TiffWriter(path.with_suffix(".tif")) as file:
        file.write(labels, photometric="minisblack")
        file.write(np.ascontiguousarray(labels[::2, ::2]), photometric="minisblack", subfiletype=1)


def with_a_mask_of_its_own(labels: np.ndarray, path: Path) -> None:
    """As GDAL writes what is no data, with GDAL_TIFF_INTERNAL_MASK."""
    with tifffile.TiffWriter(path.with_suffix(".tif")) as file:
        file.write(labels, photometric="minisblack")
        file.write(np.ones(labels.shape, bool), photometric="mask", subfiletype=4)


def as_three_bands_of_16_bits(labels: np.ndarray, path: Path) -> None:
    cv2.imwrite(str(path), np.repeat(labels[..., None], 3, 2).astype(np.uint16))


def as_tiff_of_three_bands_of_16_bits(labels: np.ndarray, path: Path) -> None:
    as_three_bands_of_16_bits(labels, path.with_suffix(".tif"))


def as_grey_and_alpha_of_16_bits(labels: np.ndarray, path: Path) -> None:
    png(path, np.stack([labels, np.full_like(labels, 65535, np.uint16)], 2).astype(">u2"), 16, 4)


@pytest.mark.parametrize(
    "save",
    [
        as_lossless_webp,
        with_an_overview,
        with_a_mask_of_its_own,
        as_three_bands_of_16_bits,
        as_tiff_of_three_bands_of_16_bits,
        as_grey_and_alpha_of_16_bits,
    ],
)
def test_labels_are_read_whatever_the_picture_is(
    tmp_path: Path, save: Callable[[np.ndarray, Path], None]
) -> None:
    folder = own_images.write(tmp_path, 5)
    (folder / "classes.txt").write_text("background\ndisc\nsquare\n")
    saved_by(folder, save)
    for labels, given in zip(labels_of(make(folder)).values(), expected(5), strict=True):
        assert (labels == given).all()


def test_colours_of_16_bits(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 5)
    factor = 257

    def save(labels: np.ndarray, path: Path) -> None:
        cv2.imwrite(str(path), own_images.PALETTE[labels][..., ::-1].astype(np.uint16) * factor)

    saved_by(folder, save)
    for labels, given in zip(labels_of(make(folder)).values(), expected(5), strict=True):
        assert (labels == given).all()
    (folder / "data").rename(tmp_path / "before")
    factor = 100
    for mask, labels in zip(sorted((folder / "masks").iterdir()), expected(5), strict=True):
        save(labels, mask)
    assert "colours of 16 bits that 8 bits do not hold" in told(folder)["colour unknown"]


def test_greys_that_pngquant_has_numbered_are_told(tmp_path: Path) -> None:
    """It makes a palette of grey labels, in an order of its own: 0, 1, 2 become 2, 0, 1, and each is a
    class's."""
    folder = own_images.write(tmp_path, 5)
    (folder / "classes.txt").write_text("background\ndisc\nsquare\n")

    def save(labels: np.ndarray, path: Path) -> None:
        png(path, np.array([2, 0, 1], np.uint8)[labels], 8, 3, bytes((1, 1, 1, 2, 2, 2, 0, 0, 0)))

    saved_by(folder, save, 3)
    found = told(folder)["colours contradict"]
    assert "scene_003.png is a palette picture: its value 0 has the grey 1, which is a label too" in found
    saved = np.asarray(Image.open(folder / "masks/scene_003.png"))
    assert (labels_of(make(folder, "--mask-kind", "labels"))["scene_003"] == saved).all()


@pytest.mark.parametrize("greys", [(0, 1, 2), (0, 85, 170), (0, 255, 255)])
def test_greys_that_agree_or_are_no_labels_are_not(tmp_path: Path, greys: tuple[int, ...]) -> None:
    folder = own_images.write(tmp_path, 5)
    (folder / "classes.txt").write_text("background\ndisc\nsquare\n")
    palette = bytes(grey for grey in greys for _ in range(3))
    saved_by(folder, lambda labels, path: png(path, labels, 8, 3, palette))
    for labels, given in zip(labels_of(make(folder)).values(), expected(5), strict=True):
        assert (labels == given).all()


@pytest.mark.parametrize("labels", [(0, 1, 2), (3, 3, 4), (1, 1, 2)])
def test_labels_in_one_grey_are_no_greys(tmp_path: Path, labels: tuple[int, ...]) -> None:
    """Cityscapes' palette has black for its labels 0 to 4."""
    folder = own_images.write(tmp_path, 5)
    (folder / "classes.txt").write_text(MANY)
    saved_by(folder, lambda drawn, path: png(path, np.array(labels, np.uint8)[drawn], 8, 3, bytes(18)))
    for found, drawn in zip(labels_of(make(folder)).values(), expected(5), strict=True):
        assert (found == np.array(labels)[drawn]).all()


def test_greys_saved_small_are_the_values_of_classes_that_have_them(tmp_path: Path) -> None:
    """As oxipng makes 2 bits of 0, 85 and 170, of which none but those can be meant."""
    folder = own_images.write(tmp_path, 5)
    (folder / "classes.txt").write_text("background\ndisc value=85\nsquare value=170\n")

    def save(labels: np.ndarray, path: Path) -> None:
        png(path, np.packbits(np.unpackbits(labels[..., None], 2)[..., -2:].reshape(64, -1), 1), 2, 0)

    saved_by(folder, save)
    for labels, given in zip(labels_of(make(folder)).values(), expected(5), strict=True):
        assert (labels == given).all()
    (folder / "data").rename(tmp_path / "before")
    (folder / "classes.txt").write_text("background\na value=1\nb value=2\ndisc value=85\nsquare value=170\n")
    assert "is grey of less than 8 bits" in told(folder)["unreadable mask"]


@pytest.mark.parametrize("mode", ["1", "L"])
def test_0_1_among_0_255_is_asked_about(tmp_path: Path, mode: str) -> None:
    """As optipng leaves them, or another program: taken for labels, what is drawn as 255 would not count."""
    folder = own_images.write(tmp_path, 5, masks="binary")
    (folder / "classes.txt").write_text("background\nthing\n")

    def save(labels: np.ndarray, path: Path) -> None:
        Image.fromarray(labels if mode == "1" else labels // 255).convert(mode).save(path)

    saved_by(folder, save, 0)
    Image.new("L", own_images.SIZE).save(folder / "masks/scene_001.png")
    found = told(folder)["0/255 masks"]
    assert f"scene_002.png has 255 and no 1, {folder / 'masks/scene_000.png'} 1 and no 255" in found
    for number, drawn in enumerate(labels_of(make(folder, "--mask-kind", "binary")).values()):
        assert (drawn == ((expected(5)[number] > 0) if number != 1 else 0)).all()
    (folder / "data").rename(tmp_path / "binary")
    labels = labels_of(make(folder, "--mask-kind", "labels"))
    assert [set(np.unique(one)) for one in labels.values()] == [{0, 1}, {0}, *[{0, 255}] * 3]


def test_binary_masks_have_one_value_for_what_is_drawn(tmp_path: Path) -> None:
    folder = own_images.write(tmp_path, 5, masks="binary")
    (folder / "classes.txt").write_text("background\nthing\n")
    saved_by(folder, lambda labels, path: Image.fromarray(np.maximum(labels, labels[::-1] // 255)).save(path))
    assert (
        "has 1 and 255: which of them is 'thing'?" in told(folder, "--mask-kind", "binary")["label outside"]
    )
    assert {0, 1, 255} == set(np.unique(labels_of(make(folder))["scene_000"])), "labels, and what is ignored"


def test_one_bit_beside_what_is_ignored_is_asked_about(tmp_path: Path) -> None:
    """A mask with nothing but what is ignored, saved small: white is not the label 1 then."""
    folder = own_images.write(tmp_path, 5)
    (folder / "classes.txt").write_text("background\ndisc\nsquare\n")

    def ignored(labels: np.ndarray, path: Path) -> None:
        Image.fromarray(np.where(np.arange(64)[:, None] < 3, 255, labels).astype(np.uint8)).save(path)

    saved_by(folder, lambda labels, path: Image.fromarray(labels > 0).save(path), 0)
    assert (labels_of(make(folder))["scene_000"] == (expected(1)[0] > 0)).all(), "nothing else has 255"
    (folder / "data").rename(tmp_path / "before")
    saved_by(folder, ignored, 1)
    assert "scene_000.png has 1 bit, and other masks 255" in told(folder)["label unclear"]
    labels = labels_of(make(folder, "--mask-kind", "labels"))["scene_000"]
    assert set(np.unique(labels)) == {0, 1}


@pytest.mark.parametrize(("white", "named", "label"), [("wall", "'wall'", 3), ("ignore", "`ignore`", 255)])
def test_one_bit_among_colours_is_asked_about(tmp_path: Path, white: str, named: str, label: int) -> None:
    """A picture of colours that is black and white, saved small: its white is not the label 1."""
    folder = own_images.write(tmp_path, 5, masks="colours")
    (folder / "classes.txt").write_text(f"{own_images.CLASSES}{white} 255 255 255\n")
    Image.fromarray(expected(3)[2] > 0).save(folder / "masks/scene_002.png")
    assert f"its value 1 has the colour of {named}" in told(folder)["colours contradict"]
    labels = labels_of(make(folder, "--mask-kind", "colours"))["scene_002"]
    assert (labels == np.where(expected(3)[2] > 0, label, 0)).all()


def test_values_that_were_put_right_are_heeded_by_the_next_start(tmp_path: Path) -> None:
    """What was read of a mask is kept, and with it what contradicts the values as they were."""
    folder = own_images.write(tmp_path, 5)
    colours = ("background 0 0 0", "square 40 70 220", "disc 220 60 40")
    (folder / "classes.txt").write_text("\n".join(colours))
    palette = own_images.PALETTE.tobytes()
    saved_by(folder, lambda labels, path: png(path, labels, 8, 3, palette))
    assert "is 'square' by the classes file" in told(folder)["colours contradict"]
    lines = (f"{line} value={value}\n" for line, value in zip(colours, (0, 2, 1), strict=True))
    (folder / "classes.txt").write_text("".join(lines))
    for labels, given in zip(labels_of(make(folder)).values(), expected(5), strict=True):
        assert (labels == np.array([0, 2, 1])[given]).all()


def test_masks_beside_images_of_another_format(tmp_path: Path) -> None:
    """A mask is no image without a mask, though its name is that of one."""
    folder = own_images.write(tmp_path, 5, suffix=".jpg")
    for mask in (folder / "masks").iterdir():
        mask.rename(folder / "images" / mask.name)
    (folder / "images/meta.json").write_text('{"tags": []}')  # no annotation: it has no image's name
    root = make(folder, "--masks", folder / "images")
    for labels, given in zip(labels_of(root).values(), expected(5), strict=True):
        assert (labels == given).all()
    (folder / "data").rename(tmp_path / "before")
    (folder / "images/scene_002.png").unlink()
    (folder / "images/scene_003.jpg").unlink()
    table = told(folder, "--masks", folder / "images")["no mask"]
    assert f"scene_002.jpg there is no {folder / 'images/scene_002.png'}" in table


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_dataset_is_not_made_among_what_it_is_made_of(tmp_path: Path, kind: str) -> None:
    """The next start would take the one for the other."""
    folder = own_images.write(tmp_path, 5)
    with pytest.raises(UserError, match=f"--data-root .*{kind}/data lies in .*{kind}: the next start"):
        make(folder, "--data-root", folder / kind / "data")
    assert not (folder / kind / "data").exists()


def asked_to_check(folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> argparse.Namespace:
    """--check of a config that reads the images and masks of `folder`, now the working directory, so."""
    (folder / "config.py").write_text(
        f"data = dict(type='BaseSegDataset', data_root='.', {how},\n"
        "            data_prefix=dict(img_path='images', seg_map_path='masks'),\n"
        "            metainfo=dict(classes=('background', 'disc', 'square')))\n"
        "train_dataloader = val_dataloader = test_dataloader = dict(dataset=data)\n"
        "model = dict(decode_head=dict(num_classes=3))\n"
    )
    monkeypatch.chdir(folder)
    return command.parser().parse_args(["--check", "config.py", "--processes", "1"])


@pytest.mark.parametrize("mode", ["RGB", "LA"])
def test_a_mask_that_loadannotations_reads_in_several_bands_is_told_by_check(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks like labels, and no head can learn from height × width × bands of them."""
    folder = own_images.write(tmp_path, 4)
    asked = asked_to_check(folder, monkeypatch, "img_suffix='.png', pipeline=[]")
    assert check.check_config(asked) == 4
    saved_by(folder, lambda labels, path: Image.fromarray(labels).convert(mode).save(path), 2)
    with pytest.raises(UserError, match=r"masks/scene_002\.png: has several bands, and a training reads one"):
        check.check_config(asked)
    compat.prepare()
    from mmseg.datasets.transforms import LoadAnnotations

    load = LoadAnnotations()
    found = load({"seg_map_path": "masks/scene_002.png", "seg_fields": [], "reduce_zero_label": False})
    assert found["gt_seg_map"].ndim == 3, "or there is nothing to tell"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "data.update(reduce_zero_label=False)",
            r"pipeline ends at it \(AssertionError: .*reduce_zero_label",
        ),
        ("data.update(data_prefix=dict(img_path='images'))", r"pipeline ends at it \(KeyError: "),
        ("train_dataloader = val_dataloader = dict(dataset=dict(typ='x'))", "reads no images: none of its"),
    ],
)
def test_what_no_training_could_begin_with_is_told_by_check(
    tmp_path: Path, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of none of these a word was said."""
    folder = own_images.write(tmp_path, 4)
    (folder / "config.py").write_text(
        "steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True)]\n"
        "data = dict(type='BaseSegDataset', data_root='.', img_suffix='.png', pipeline=steps,\n"
        "            data_prefix=dict(img_path='images', seg_map_path='masks'), reduce_zero_label=True,\n"
        f"            metainfo=dict(classes=('disc', 'square')))\n{'' if 'loader' in text else text}\n"
        "train_dataloader = val_dataloader = dict(dataset=data)\n"
        f"{text if 'loader' in text else ''}\n"
    )
    if "reduce_zero" in text:
        config = (folder / "config.py").read_text()
        (folder / "config.py").write_text(config.replace("('disc'", "('background', 'disc'"))
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=said):
        check.check_config(command.parser().parse_args(["--check", "config.py", "--processes", "1"]))


def test_a_dataset_class_may_add_to_what_its_pipeline_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a training asks it: not the pipeline alone."""
    compat.prepare()
    from mmseg.datasets import BaseSegDataset
    from mmseg.registry import DATASETS

    class Adding(BaseSegDataset):
        def load_data_list(self) -> list[dict[str, Any]]:
            return [{k: v for k, v in one.items() if k != "seg_fields"} for one in super().load_data_list()]

        def prepare_data(self, idx: int) -> Any:
            return self.pipeline(self.get_data_info(idx) | {"seg_fields": []})

    DATASETS.register_module(module=Adding, force=True)
    folder = own_images.write(tmp_path, 4)
    (folder / "config.py").write_text(
        "data = dict(type='Adding', data_root='.', img_suffix='.png',\n"
        "            data_prefix=dict(img_path='images', seg_map_path='masks'),\n"
        "            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],\n"
        "            metainfo=dict(classes=('background', 'disc', 'square')))\n"
        "train_dataloader = dict(dataset=data)\n"
    )
    monkeypatch.chdir(folder)
    assert check.check_config(command.parser().parse_args(["--check", "config.py", "--processes", "1"])) == 4


def test_an_image_that_the_configs_reader_does_not_give_is_told_by_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = own_images.write(tmp_path, 4)
    for path in (folder / "images").iterdir():
        Image.open(path).convert("RGB").save(path.with_suffix(".tif"))
        path.unlink()
    steps = "pipeline=[dict(type='LoadImageFromFile')]"
    asked = asked_to_check(folder, monkeypatch, f"img_suffix='.tif', {steps}")
    pixels = tifffile.imread("images/scene_002.tif")
    tifffile.imwrite("images/scene_002.tif", pixels, photometric="minisblack", planarconfig="contig")
    assert check.check_config(asked) == 4
    assert (
        "scene_002.tif: the config's loading step gives other pixels than are stored"
        in capsys.readouterr().out
    )
    tifffile.imwrite("images/scene_003.tif", pixels, photometric="rgb", compression="lzma")
    with pytest.raises(UserError, match=r"scene_003\.tif: the config's loading step cannot read it"):
        check.check_config(asked)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_mask_that_its_own_exif_turns_is_told(tmp_path: Path, suffix: str) -> None:
    """As editors leave it of the photograph: upright for all viewers, and upside down for a training."""
    folder = own_images.write(tmp_path, 5)
    (folder / "classes.txt").write_text("background\ndisc\nsquare\n")
    exif = Image.Exif()
    exif[0x0112] = 3

    def save(labels: np.ndarray, path: Path) -> None:
        Image.fromarray(labels[::-1, ::-1].copy()).save(path.with_suffix(suffix), exif=exif)

    saved_by(folder, save, 1)
    assert f"scene_001{suffix} is turned by its own EXIF" in told(folder)["EXIF turned"]
    if suffix == ".png":
        assert (labels_of(make(folder, "--ignore-exif"))["scene_001"] == expected(2)[1][::-1, ::-1]).all()
