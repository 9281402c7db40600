"""Splits that a user has made already, and that are to stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.prepare.own import splits
from jobs.run.errors import UserError
from tests.prepare.test_own_images import items


@pytest.mark.parametrize(
    "folders",
    [
        ["site1/train", "site1/val", "site2/train"],
        ["images/Train", "images/Test"],
        ["train/a/training", "train/a/validation"],
    ],
)
def test_folders_of_a_split_below_others_are_not_mixed(folders: list[str]) -> None:
    names = [f"{folder}/{number}.png" for folder in folders for number in range(5)]
    with pytest.raises(UserError) as refused:
        splits.split(items(names), None, 0, "", ("", ""))
    assert f"{folders[0]}/, {folders[1]}/ look like a split, below others" in str(refused.value)
    assert len(splits.split(items(names), 0.8, 0, "", ("", ""))[0]) == len(names), "drawn if told so"


def test_a_folder_that_is_called_as_a_split_alone_says_nothing() -> None:
    names = [f"vehicles/{kind}/{number}.png" for kind in ("car", "train") for number in range(5)]
    assert len(splits.split(items(names), None, 0, "", ("", ""))[0]) == 10


def test_a_name_in_a_list_is_that_of_one_image(tmp_path: Path) -> None:
    """Without its suffix it was whichever came first, though another folder has another of that name."""
    file = tmp_path / "train.txt"
    file.write_text("1\nb/2\n3\n")
    given = items(["a/1.jpg", "a/2.jpg", "b/1.png", "b/2.png", "b/3.png"])
    drawn, found = splits.split(given, None, None, "", (str(file), ""))
    assert [one.name for one in drawn if one.split == "train"] == ["b/2.png", "b/3.png"]
    assert [(one.kind, one.text) for one in found] == [
        ("not there", "it lists '1', which matches no image, or several")
    ]
