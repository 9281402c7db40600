"""Images as they are read for segmenting, where their results go, and label maps as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.catalog import listing
from jobs.mmseg import images, pictures
from jobs.prepare.own import images as prepared
from jobs.run.errors import UserError


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_what_is_transparent_is_black(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 3), (200, 200, 200, 255))
    image.putpixel((1, 2), (200, 200, 200, 0))
    if mode == "P":
        image = Image.new("P", (4, 3), 7)
        image.putpalette([200] * 768)
        image.putpixel((1, 2), 9)
        image.save(tmp_path / "x.png", transparency=9)
    else:
        image.convert(mode).save(tmp_path / "x.tif" if mode == "PA" else tmp_path / "x.png")
    (file,) = tmp_path.iterdir()
    read = images.read(file)
    assert read.shape == (3, 4, 3)
    assert read[2, 1].tolist() == [0, 0, 0]
    assert read[0, 0].tolist() == [200, 200, 200]


def test_half_transparent_is_mixed_with_black(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (200, 100, 50, 51)).save(tmp_path / "x.png")
    assert images.read(tmp_path / "x.png")[0, 0].tolist() == [40, 20, 10]


def test_equal_stems_do_not_meet() -> None:
    paths = [Path("/a/x/one.jpg"), Path("/a/x/one.png"), Path("/a/y/one.jpg"), Path("/a/two.png")]
    found = [str(name) for name in images.names(paths)]
    assert found == ["x/one_jpg", "x/one_png", "y/one", "two"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "a.png", "a_jpg.png", "a_png.png"], ["a_jpg_", "a_png_", "a_jpg", "a_png"]),
        (["a.b.jpg", "a.b.png", "a_b.jpg", "a_b.png"], ["a_b_jpg", "a_b_png", "a_b_jpg_", "a_b_png_"]),
        (["x/a.jpg", "x/a.png", "a_jpg.png"], ["x/a_jpg", "x/a_png", "a_jpg"]),
        (["a.jpg", "a.png", "a_jpg.jpg", "a_jpg.png"], ["a_jpg", "a_png", "a_jpg_jpg", "a_jpg_png"]),
        (["a", "a.jpg"], ["a", "a_jpg"]),
    ],
)
def test_what_a_name_is_made_of_another_has_already(names: list[str], expected: list[str]) -> None:
    assert list(images.unlike(names)) == expected


def test_every_image_that_a_preparation_takes_is_one_in_a_folder() -> None:
    assert set(prepared.SUFFIXES) == listing.ENDINGS


def test_an_empty_file_is_said_to_be_that(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=r"a\.png cannot be read as an image: it is empty$"):
        images.read(tmp_path / "a.png")


def test_more_classes_than_a_byte_holds() -> None:
    palette = [[number % 256, number // 256, 1] for number in range(300)]
    labels = np.array([[0, 255, 256, 299]], np.uint16)
    mask = pictures.mask(labels, palette)
    assert np.asarray(mask).tolist() == labels.tolist()
    shown = np.asarray(pictures.overlay(np.zeros((1, 4, 3), np.uint8), labels, palette, 1.0))
    assert shown[0].tolist() == [palette[number] for number in (0, 255, 256, 299)]


def test_labels_are_the_pixels_of_a_palette_mask() -> None:
    labels = np.array([[0, 1, 20, 255]], np.uint8)
    mask = pictures.mask(labels, [[0, 0, 0], [128, 0, 0]])
    assert mask.mode == "P"
    assert np.asarray(mask).tolist() == labels.tolist()
    assert np.asarray(mask.convert("RGB"))[0, 3].tolist() == list(pictures.IGNORED)
