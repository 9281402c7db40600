"""TIFFs: stored otherwise than they are seen."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from jobs.mmseg import compat
from jobs.prepare.own import images, reading

compat.prepare()

from mmcv.transforms import LoadImageFromFile  # noqa: E402

PIXELS = np.random.default_rng(1).integers(0, 256, (40, 70, 3)).astype(np.uint8)


def tiff(image: Image.Image, compression: str | None, **tags: int) -> bytes:
    file = io.BytesIO()
    named = {"photometric": 262, "orientation": images.ORIENTATION}
    image.save(file, "TIFF", compression=compression, tiffinfo={named[tag]: tags[tag] for tag in tags})
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_turned_tiff_is_read_as_it_is_stored(compression: str | None, orientation: int) -> None:
    """OpenCV, which reads LZW, turns it by itself: the copy was turned a second time."""
    content = tiff(Image.fromarray(PIXELS), compression, orientation=orientation)
    assert images.look(content).orientation == orientation
    assert (images.read(content) == PIXELS).all()


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(
    ("mode", "compression"), [("1", None), ("1", "packbits"), ("1", "group4"), ("L", None), ("L", "tiff_lzw")]
)
def test_white_may_be_0(mode: str, compression: str | None, orientation: int) -> None:
    """As scanners save pages."""
    drawn = Image.fromarray(PIXELS).convert(mode)
    content = tiff(drawn, compression, photometric=0, orientation=orientation)
    assert (images.read(content)[..., 0] == np.asarray(drawn.convert("L"))).all()


def test_a_usual_tiff_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten thousand, decoding each with OpenCV, too, took longer than all else."""
    monkeypatch.setattr(images, "by_opencv", lambda *_: pytest.fail("decoded twice"))
    assert images.look(tiff(Image.fromarray(PIXELS), None)).plain
    assert images.look(tiff(Image.fromarray(PIXELS[..., 0]), "tiff_deflate")).plain


def test_three_bands_that_are_no_colours_are_not_left_to_opencv() -> None:
    """As GDAL writes bands: OpenCV gives the first of them three times."""
    file = io.BytesIO()
    tifffile.imwrite(file, PIXELS, photometric="minisblack", planarconfig="contig", extrasamples=[0, 0])
    assert not images.look(file.getvalue()).plain


def test_what_opencv_has_no_decoder_for_is_not_left_to_it(tmp_path: Path) -> None:
    """The training ended at the first of them."""
    (tmp_path / "x.tif").write_bytes(content := tiff(Image.fromarray(PIXELS), "tiff_adobe_deflate"))
    assert images.look(content).plain
    tifffile.imwrite(tmp_path / "x.tif", PIXELS, photometric="rgb", compression="lzma")
    content = (tmp_path / "x.tif").read_bytes()
    assert (images.read(content) == PIXELS).all()
    assert not images.look(content).plain
    assert reading.unread(LoadImageFromFile(), tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("changed", "given"),
    [
        ({"photometric": "rgb"}, False),
        ({"photometric": "minisblack", "planarconfig": "contig"}, True),
        ({"photometric": "rgb", "extrasamples": ["unassalpha"]}, True),
        ({"photometric": "rgb", "extrasamples": ["unassalpha"], "opaque": True}, False),
    ],
)
def test_what_a_loading_step_makes_of_an_image_is_told(
    changed: dict[str, Any], given: bool, tmp_path: Path
) -> None:
    """An inference reads by it what a preparation has converted."""
    opaque = changed.pop("opaque", False)
    alpha = np.full((40, 70, 1), 255, np.uint8) if opaque else PIXELS[..., :1]
    pixels = np.dstack([PIXELS, alpha]) if "extrasamples" in changed else PIXELS
    tifffile.imwrite(tmp_path / "x.tif", pixels, **changed)
    assert (images.read((tmp_path / "x.tif").read_bytes()) == PIXELS).all()
    assert reading.misread(LoadImageFromFile(), tmp_path / "x.tif") == given
    assert not (given and reading.is_usual(tmp_path / "x.tif"))
    Image.fromarray(PIXELS).save(tmp_path / "x.jpg", quality=70, subsampling=2)
    assert not reading.misread(LoadImageFromFile(), tmp_path / "x.jpg")


def test_a_page_of_no_data_is_no_second_image() -> None:
    """As GDAL writes it."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(PIXELS[..., 0], photometric="minisblack")
        writer.write(np.ones(PIXELS.shape[:2], bool), photometric="mask", subfiletype=4)
    assert images.look(file.getvalue()).plain
    assert (images.read(file.getvalue())[..., 0] == PIXELS[..., 0]).all()
