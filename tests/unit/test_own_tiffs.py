"""TIFFs: stored otherwise than they are seen."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from jobs.prepare.own import images

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


def test_a_page_of_no_data_is_no_second_image() -> None:
    """As GDAL writes it."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(PIXELS[..., 0], photometric="minisblack")
        writer.write(np.ones(PIXELS.shape[:2], bool), photometric="mask", subfiletype=4)
    assert images.look(file.getvalue()).plain
    assert (images.read(file.getvalue())[..., 0] == PIXELS[..., 0]).all()
