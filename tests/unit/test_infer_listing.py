"""Which images an inference is asked for, where their results go, and what of that is in memory."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from jobs.infer.listing import Listing
from jobs.mmseg import images
from jobs.run import output, windows
from jobs.run.errors import UserError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(listing: Listing) -> list[str]:
    return [str(name) for _, name in listing]


def test_each_image_once_and_no_two_with_one_result(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    touch(
        a / "x.png", a / "x.jpg", a / "y.tif", a / "deep" / "x.png", a / "notes.txt", b / "x.JPG", b / "y.dat"
    )
    listing = Listing([str(a), str(a / "deep"), str(a / "*.png"), str(b / "y.dat"), str(b / "x.JPG")])
    assert names(listing) == ["a/x_jpg", "a/x_png", "a/y", "a/deep/x", "b/x", "b/y"]
    assert names(listing) == names(listing)
    assert listing.counted() == Listing([str(b / "*"), str(a)]).counted()
    assert listing.counted()[0] == 6
    assert [path for path, _ in listing][-1] == b / "y.dat"


def test_a_file_beside_those_of_its_folder_is_told_apart_from_them(tmp_path: Path) -> None:
    touch(tmp_path / "x.png", tmp_path / "x.dat")
    assert names(Listing([str(tmp_path), str(tmp_path / "x.dat")])) == ["x_dat", "x_png"]


def test_results_within_the_folder_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path / "x.png", tmp_path / "masks" / "x.png", tmp_path / "masks" / "deep" / "x.png")
    assert names(Listing([str(tmp_path)], tmp_path / "masks")) == ["x"]
    with pytest.raises(UserError, match="no images at"):
        Listing([str(tmp_path / "masks")], tmp_path / "masks").counted()


def test_earlier_results_are_no_images_unless_they_are_asked_for(tmp_path: Path) -> None:
    touch(tmp_path / "x.png", tmp_path / "masks" / "x.png", tmp_path / "a" / "old" / "deep" / "x.png")
    touch(tmp_path / "masks" / output.MARK, tmp_path / "a" / "old" / output.MARK)
    listing = Listing([str(tmp_path)], tmp_path / "other")
    assert names(listing) == ["x"]
    assert str(listing.passed) == f"left out: 2 × folder of results ({tmp_path}/masks, …)"
    assert [path.name for path in images.find([str(tmp_path)])] == ["x.png"]
    assert names(Listing([str(tmp_path / "masks")], tmp_path / "masks" / "new")) == ["x"]
    with pytest.raises(UserError, match=r"no images at .*/a \(left out: 1 × folder of results"):
        Listing([str(tmp_path / "a")]).counted()


def test_links_are_followed_once_and_those_to_nothing_are_said(tmp_path: Path) -> None:
    asked, away = tmp_path / "asked", tmp_path / "away"
    touch(asked / "in" / "x.png", away / "y.png", away / "deep" / "z.png", tmp_path / "w.png")
    for link, target in (
        ("a", away), ("b", away), ("c", away / "deep"), ("in/again", asked), ("in2", asked / "in"),
        ("up", tmp_path), ("w.png", tmp_path / "w.png"), ("gone", away / "n"), ("gone.png", away / "n"),
    ):  # fmt: skip
        (asked / link).symlink_to(target)
    (away / "back").symlink_to(asked)
    (away / "round").symlink_to(away / "deep")
    listing = Listing([str(asked), str(away / "y.png")])
    assert names(listing) == ["asked/w", "asked/a/y", "asked/c/z", "asked/in/x"]
    assert str(listing.passed).startswith("left out: 2 × link that leads nowhere (")
    assert listing.counted()[0] == 4


@pytest.mark.parametrize("what", ["", "/none*", "/x.png"])
def test_what_matches_nothing_is_said(what: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images at"):
        Listing([f"{tmp_path}{what}"]).counted()


def test_a_folder_of_very_many_images(tmp_path: Path) -> None:
    for number in range(20_000):
        (tmp_path / f"{number % 20}").mkdir(exist_ok=True)
        (tmp_path / f"{number % 20}" / f"photo-{number:08}.jpg").touch()
    tracemalloc.start()
    try:
        assert Listing([str(tmp_path)]).counted()[0] == 20_000
        # All of them together take 2 MB as names alone, and 12 as paths.
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "-1/2", ""])
def test_a_part_is_one_of_several(text: str) -> None:
    assert windows.share_of("2/3") == (2, 3)
    with pytest.raises(UserError, match=r"--part must be I/N"):
        windows.share_of(text)


def test_a_pipe_is_no_image_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(UserError, match="no images at"):
        Listing([str(tmp_path / "x.png")])
    with pytest.raises(UserError, match="no images at"):
        images.find([str(tmp_path / "x.png")])
